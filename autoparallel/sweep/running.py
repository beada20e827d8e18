"""Run the cases of a sweep: in this process, or on Ray; each result is kept as it is found.

A result is one small file, written atomically before the next is waited for. Whatever stops a
sweep, the same sweep into the same folder searches only what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autoparallel.errors import INSTALL_PROFILE, ConfigError, bad_value
from autoparallel.sweep.cases import SweepCase
from autoparallel.sweep.results import SweepResult, load, save, searched_case

IN_FLIGHT = 64
"""Cases submitted to Ray ahead of those that are done."""

Progress = Callable[[int, int, SweepResult], None]


def run_cases(
    cases: Sequence[SweepCase],
    folder: Path | None = None,
    ray_address: str = "",
    progress: Progress | None = None,
) -> list[SweepResult]:
    """The results of all cases, in their order.

    Args:
        cases: What to search.
        folder: Where results are kept and found again; None keeps nothing.
        ray_address: A Ray cluster, or `local` to start one here; empty runs in this process.
        progress: Called with the number done, the number of all, and the newest result.

    Raises:
        ConfigError: a folder that cannot be written, or a Ray that cannot be reached.
    """
    found = {case.id: old for case in cases if folder and (old := load(folder, case.id))}
    if progress is not None:
        for result in found.values():
            progress(len(found), len(cases), result)
    missing = [case for case in cases if case.id not in found]
    searching = _on_ray(missing, ray_address) if ray_address else map(searched_case, missing)
    for result in searching:
        found[result.id] = result
        if folder is not None:
            save(result, folder)
        if progress is not None:
            progress(len(found), len(cases), result)
    return [found[case.id] for case in cases]


def _on_ray(cases: Sequence[SweepCase], address: str) -> Iterator[SweepResult]:
    """Results as Ray finishes them; a case whose worker died is searched here."""
    if not cases:
        return
    ray = _started(address)
    try:
        search = ray.remote(max_retries=1)(searched_case)
        waiting, rest = {}, iter(cases)
        for case in _first(rest, IN_FLIGHT):
            waiting[search.remote(case)] = case
        while waiting:
            done, _ = ray.wait(list(waiting))
            case = waiting.pop(done[0])
            try:
                result = ray.get(done[0])
            except ray.exceptions.RayError:
                result = searched_case(case)
            for more in _first(rest, 1):
                waiting[search.remote(more)] = more
            yield result
    finally:
        ray.shutdown()


def _first(cases: Iterator[SweepCase], count: int) -> list[SweepCase]:
    return [case for _, case in zip(range(count), cases, strict=False)]


def _started(address: str) -> Any:
    """Ray, connected; workers of a local one find this very package."""
    try:
        import ray
    except ImportError:
        rule = "needs Ray, which is not here"
        raise bad_value("--ray-address", address, rule, INSTALL_PROFILE) from None
    home = str(Path(__file__).parents[2])
    local = address == "local"
    environment = {"env_vars": {"PYTHONPATH": home, "OMP_NUM_THREADS": "1"}} if local else {}
    options: dict[str, Any] = {"include_dashboard": False} if local else {}
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"--ray-address: {address!r} cannot be reached ({first})") from None
    return ray
