"""A Slurm of one machine: what it is called as (sbatch, squeue, ...) is what it does.

State lies in FAKE_SLURM, a folder: N.json of every job, and files that make it misbehave:
start_s (seconds a job stays PENDING), limit_s (a job's time limit), busy (an error message that the
next sbatch gives, after taking the job), silent (squeue cannot reach the controller), no_accounts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["FAKE_SLURM"])
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "OUT_OF_MEMORY", "CANCELLED by 1000"}


def setting(name: str) -> str:
    path = HOME / name
    return path.read_text().strip() if path.exists() else ""


def load(number: str) -> dict[str, str]:
    path = HOME / f"{number}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(number: str, **values: object) -> None:
    text = json.dumps(load(number) | {k: str(v) for k, v in values.items()})
    temporary = HOME / f".{number}.{os.getpid()}"
    temporary.write_text(text)
    temporary.replace(HOME / f"{number}.json")


def option(name: str, default: str = "") -> str:
    """--name=value or --name value."""
    for i, word in enumerate(sys.argv):
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
        if word == f"--{name}":
            return sys.argv[i + 1]
    return default


def fail(message: str) -> None:
    sys.exit(message)


def sbatch() -> None:
    script = Path(sys.argv[-1])
    found = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script.read_text(), re.M))
    if found.get("partition") == "nowhere":
        fail("sbatch: error: invalid partition specified: nowhere")
    number = str(1000 + len(list(HOME.glob("*.json"))))
    save(number, state="PENDING", name=found["job-name"], script=script, output=found["output"])
    words = [sys.executable, __file__, "run", number]
    quiet = subprocess.DEVNULL
    subprocess.Popen(words, start_new_session=True, stdin=quiet, stdout=quiet, stderr=quiet)
    if message := setting("busy"):
        (HOME / "busy").unlink()
        fail(message)
    print(number)


def run() -> None:
    """The controller's part: start the script, hold its limit, note how it ended."""
    number = sys.argv[-1]
    time.sleep(float(setting("start_s") or 0))
    if load(number)["state"] != "PENDING":
        return
    job = load(number)
    environment = {**os.environ, "SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "node[1-2]"}
    with Path(job["output"]).open("wb") as output:
        process = subprocess.Popen(
            ["bash", job["script"]],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    save(number, state="RUNNING", pid=process.pid)
    try:
        code = process.wait(float(setting("limit_s") or 60))
        ended = {0: "COMPLETED", 137: "OUT_OF_MEMORY"}.get(code, "FAILED")
    except subprocess.TimeoutExpired:
        end(process.pid)
        process.wait()
        ended = "TIMEOUT"
    if load(number)["state"] == "RUNNING":
        save(number, state=ended)


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)


def squeue() -> None:
    if setting("silent"):
        fail("squeue: error: Unable to contact slurm controller (connect failure)")
    if name := option("name"):
        jobs = [(p.stem, load(p.stem)) for p in HOME.glob("*.json")]
        print("\n".join(n for n, job in jobs if job["name"] == name and job["state"] not in ENDED))
        return
    job = load(option("jobs"))
    if not job or job["state"] in ENDED:
        fail("slurm_load_jobs error: Invalid job id specified")
    print(job["state"])


def sacct() -> None:
    if setting("no_accounts"):
        fail("Slurm accounting storage is disabled")
    number = option("jobs")
    if job := load(number):
        print(f"{number}|{job['state']}\n{number}.batch|{job['state']}\n{number}.0|FAILED")


def scancel() -> None:
    number = sys.argv[-1]
    job = load(number)
    if not job:
        fail(f"scancel: error: Kill job error on job id {number}: Invalid job id specified")
    save(number, state="CANCELLED by 1000")
    if pid := job.get("pid"):
        end(int(pid))


def scontrol() -> None:
    print("node1\nnode2")


def srun() -> None:
    """Tasks side by side; the first that fails takes the others with it."""
    per_node, nodes = int(option("ntasks-per-node")), int(option("nodes"))
    count = per_node * nodes
    at = sys.argv.index("bash")
    tasks = []
    for task in range(count):
        environment = {
            **os.environ,
            "SLURM_PROCID": str(task),
            "SLURM_LOCALID": str(task % per_node),
            "SLURM_NODEID": str(task // per_node),
            "SLURM_NTASKS": str(count),
        }
        with Path(option("output").replace("%t", str(task))).open("ab") as output:
            tasks.append(
                subprocess.Popen(sys.argv[at:], env=environment, stdout=output, stderr=output)
            )
    signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
    worst = 0
    while any(task.poll() is None for task in tasks) or worst == 0:
        codes = [task.poll() for task in tasks]
        worst = next((code for code in codes if code), 0)
        if worst:
            [task.kill() for task in tasks]
        if worst or all(code == 0 for code in codes):
            break
        time.sleep(0.01)
    [task.wait() for task in tasks]
    sys.exit(128 - worst if worst < 0 else worst)


globals()[Path(sys.argv[0]).name if sys.argv[1:2] != ["run"] else "run"]()
