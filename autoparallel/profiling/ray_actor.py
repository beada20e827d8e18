"""The actor that is one rank: brings the worker along and needs nothing else of this package."""

from __future__ import annotations

from typing import Any


def rank_actor(ray: Any) -> Any:
    """The actor class. Made in a function, so that Ray sends it by value to nodes without us."""

    class Rank:
        """One rank: unpacks the worker, runs it, and answers questions meanwhile."""

        def __init__(self) -> None:
            self.folder = ""

        def place(self) -> tuple[str, int]:
            """This node, and a port free on it for the ranks to meet at."""
            import socket

            with socket.socket() as probe:
                probe.bind(("", 0))
                return ray.util.get_node_ip_address(), int(probe.getsockname()[1])

        @ray.method(concurrency_group="look")  # type: ignore[untyped-decorator]
        def steps(self) -> str:
            """The steps so far, where only this node can read them."""
            import pathlib

            file = pathlib.Path(self.folder, "steps.jsonl")
            return file.read_text(encoding="utf-8") if self.folder and file.exists() else ""

        def run(
            self,
            code: dict[str, bytes],
            job: str,
            environment: dict[str, str],
            folder: str,
            log: str,
        ) -> dict[str, str]:
            """Train; returns how it ended with the end of its log."""
            import os
            import pathlib
            import shutil
            import sys
            import tempfile

            given = pathlib.Path(folder)
            shared = (given / "job.json").is_file() and (given / "job.json").read_text() == job
            base = str(given) if shared else None
            parcel = pathlib.Path(tempfile.mkdtemp(prefix=".worker-", dir=base))
            place = given if shared else parcel
            self.folder = "" if shared else str(parcel)
            try:
                for name, content in code.items():
                    (parcel / name).parent.mkdir(parents=True, exist_ok=True)
                    (parcel / name).write_bytes(content)
                if not shared:  # else a rank would read what another is just writing
                    (place / "job.json").write_text(job)
                os.environ.update(environment)
                sys.path.insert(0, str(parcel))
                for name in [n for n in sys.modules if n.split(".")[0] == "autoparallel"]:
                    del sys.modules[name]
                descriptor = os.open(place / log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                from autoparallel.profiling.worker.rank import run_in_folder

                end = run_in_folder(place, os.environ)
                steps = place / "steps.jsonl"
                return {
                    "outcome": end.outcome,
                    "end": end.text(),
                    "log": (place / log).read_bytes()[-4000:].decode("utf-8", "replace"),
                    "steps": steps.read_text(encoding="utf-8") if steps.exists() else "",
                }
            finally:
                shutil.rmtree(parcel, ignore_errors=True)

    return ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups={"look": 1})(Rank)
