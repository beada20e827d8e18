"""A Kubernetes of one machine: an indexed Job's pods are processes, its API server is files.

State lies in FAKE_KUBERNETES: a folder an object name, and files that make it misbehave: start_s
(seconds pods stay Pending), no_image (pods wait for one), silent (the API server refuses).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_KUBERNETES"])
QUIET = subprocess.DEVNULL


def setting(name: str) -> str:
    path = HOME / name
    return path.read_text().strip() if path.exists() else ""


def state(name: str, **values: object) -> dict:
    path = HOME / name / "state.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if values:
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(known | values))
        temporary.replace(path)
    return known | values


def create() -> None:
    manifest = json.load(sys.stdin)
    items = {item["kind"]: item for item in manifest["items"]}
    job = items["Job"]
    name = job["metadata"]["name"]
    if "INVALID" in job["spec"]["template"]["spec"]["containers"][0]["image"]:
        sys.exit("error validating data: invalid image")
    given, scratch = HOME / name / "given", HOME / name / "trial"
    given.mkdir(parents=True)
    for index in range(job["spec"]["completions"]):
        (scratch / str(index)).mkdir(parents=True)
    own = f"{scratch}/${{JOB_COMPLETION_INDEX}}"
    for file, text in items["ConfigMap"]["data"].items():
        text = text.replace("/trial", own).replace("/etc/autoparallel", str(given))
        (given / file).write_text(text)
    for file, data in items["ConfigMap"].get("binaryData", {}).items():
        (given / file).write_bytes(base64.b64decode(data))
    (HOME / name / "manifest.json").write_text(json.dumps(manifest))
    state(name, phase="Pending")
    words = [sys.executable, __file__, "run", name]
    subprocess.Popen(words, start_new_session=True, stdin=QUIET, stdout=QUIET, stderr=QUIET)


def run() -> None:
    """The controllers' part: start the pods; the first that fails ends the Job."""
    name = sys.argv[-1]
    time.sleep(float(setting("start_s") or 0))
    if setting("no_image") or not (HOME / name).exists():
        return
    manifest = json.loads((HOME / name / "manifest.json").read_text())
    job = next(item for item in manifest["items"] if item["kind"] == "Job")
    container = job["spec"]["template"]["spec"]["containers"][0]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    pods = []
    for index in range(job["spec"]["completions"]):
        with (HOME / name / f"log-{index}").open("wb") as log:
            pods.append(
                subprocess.Popen(
                    ["sh", str(HOME / name / "given" / "start.sh")],
                    env={**os.environ, **variables, "JOB_COMPLETION_INDEX": str(index)},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
    state(name, phase="Running", pids=[pod.pid for pod in pods])
    codes = [None]
    while None in codes and not any(codes):
        time.sleep(0.02)
        codes = [pod.poll() for pod in pods]
    end([pod.pid for pod in pods])
    if (HOME / name).exists():
        state(name, phase="Failed" if any(codes) else "Succeeded", codes=codes)


def end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def get() -> None:
    if setting("silent"):
        sys.exit("The connection to the server 10.0.0.1:6443 was refused")
    if "pods" in sys.argv:
        name = next(w for w in sys.argv if w.startswith("job-name=")).partition("=")[2]
        print(json.dumps({"items": pods_of(name)}))
    elif (HOME / sys.argv[sys.argv.index("job") + 1]).exists():
        phase = state(sys.argv[sys.argv.index("job") + 1])["phase"]
        kind = {"Failed": "Failed", "Succeeded": "Complete"}.get(phase)
        conditions = [{"type": kind, "status": "True"}] if kind else []
        print(json.dumps({"kind": "Job", "status": {"conditions": conditions}}))


def pods_of(name: str) -> list[dict]:
    if not (HOME / name).exists():
        return []
    known = state(name)
    manifest = json.loads((HOME / name / "manifest.json").read_text())
    count = next(i for i in manifest["items"] if i["kind"] == "Job")["spec"]["completions"]
    return [pod(name, index, known) for index in range(count)]


def pod(name: str, index: int, known: dict) -> dict:
    code = (known.get("codes") or [None] * (index + 1))[index]
    here: dict = {"running": {}} if known["phase"] == "Running" else {}
    if setting("no_image"):
        here = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
    if code:
        reason = "OOMKilled" if code == 137 else "Error"
        here = {"terminated": {"reason": reason, "exitCode": code}}
    return {
        "metadata": {
            "name": f"{name}-{index}-abcde",
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "status": {"phase": known["phase"], "containerStatuses": [{"state": here}]},
    }


def logs() -> None:
    pod_name = sys.argv[sys.argv.index("logs") + 1]
    name, index, _ = pod_name.rsplit("-", 2)
    path = HOME / name / f"log-{index}"
    if not path.exists():
        sys.exit(f"container in pod {pod_name} is waiting to start")
    print(path.read_text(), end="")


def delete() -> None:
    name = next(w for w in sys.argv if w.startswith("job/")).partition("/")[2]
    if (HOME / name).exists():
        end(state(name).get("pids", []))
        shutil.rmtree(HOME / name)


VERBS = {"create": create, "get": get, "logs": logs, "delete": delete, "run": run}
VERBS[next(word for word in sys.argv[1:] if word in VERBS)]()
