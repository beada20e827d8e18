"""What is believed of the candidates once constants are fitted to the trials.

One computation for both who ask: the campaign, before it ends because P(best) is high enough, and
the plan that it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoparallel.calibration.profile_file import Profile, rounded, write_profile
from autoparallel.calibration.training import fit_family, nearby_runs, timed_rows
from autoparallel.campaign.candidates import beliefs
from autoparallel.campaign.outcome import Outcome
from autoparallel.campaign.rows import measured_rows
from autoparallel.constants import NORMAL_90
from autoparallel.counts import counted
from autoparallel.layout import Layout
from autoparallel.measured.cases import read
from autoparallel.measured.rows import MeasuredRun
from autoparallel.plan import Corrected
from autoparallel.planning import estimate, searched
from autoparallel.profiles import read_calibration
from autoparallel.profiling.beliefs import Column
from autoparallel.profiling.study import noise
from autoparallel.ranking import setting
from autoparallel.request import TrainingRequest

ROWS_FILE = "measured.csv"
PROFILES_FOLDER = "profiles"


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Beliefs after a campaign.

    Attributes:
        corrected: The `corrected` block of every candidate.
        best_probability: P(best) of the candidates, in their order.
        files: Profiles that were written.
    """

    corrected: dict[Layout, Corrected]
    best_probability: Column
    files: tuple[Path, ...]


def correction(run: Path, request: TrainingRequest, outcome: Outcome) -> Correction | None:
    """Constants fitted to the trials and written into the run directory, and what follows of them.

    None where the trials say nothing of the plan's machine: runs on a CPU prove the way, not the
    ranking of a GPU cluster.
    """
    if not corrects(request, outcome):
        return None
    written = _recalibrated(run, request, measured_rows(request, outcome.trials))
    folder = run / PROFILES_FOLDER
    fresh = replace(request, profiles_dir=str(folder.resolve())) if folder.is_dir() else request
    among = searched(fresh, top=1)[1]
    again = [estimate(fresh, entry.layout, among=among).entry for entry in outcome.found]
    seen = outcome.study.seen
    told = {i: (r.iteration_s or 0.0, noise(r)) for i, r in seen.measured.items()}
    after = beliefs(again, setting(request).calibration.spread).after(told)
    fits = np.array([entry.fits_probability or 0.0 for entry in again])
    fits[list(seen.measured)] = 1.0
    fits[[*seen.failed, *seen.pruned]] = 0.0
    chances = after.best_probability(fits)
    seconds, (low, high) = after.seconds(), after.interval_s(NORMAL_90)
    corrected = {
        entry.layout: Corrected(
            iteration_s=float(seconds[i]),
            iteration_s_interval=(float(low[i]), float(high[i])),
            memory_bytes=entry.memory_bytes,
            fits_probability=float(fits[i]),
            best_probability=float(chances[i]),
        )
        for i, entry in enumerate(again)
    }
    return Correction(corrected=corrected, best_probability=chances, files=tuple(written))


def corrects(request: TrainingRequest, outcome: Outcome) -> bool:
    """Whether what was measured is the plan's own machine."""
    devices = {r.device for r in outcome.study.seen.measured.values()}
    return bool(devices) and (("cpu" in devices) == (request.cluster.gpu.generation == "cpu"))


def _recalibrated(run: Path, request: TrainingRequest, rows: Sequence[MeasuredRun]) -> list[Path]:
    """Fit the constants to the timed rows, pulled to those of before; none without timed rows."""
    readings = [read(row, request.config_path) for row in rows if row.iteration_s]
    if not readings:
        return []
    timed = timed_rows(readings)
    known = setting(request).calibration
    family = str(timed.families[0])
    everything = np.ones(len(timed.readings), dtype=bool)
    fitted = fit_family(timed, family, everything, known.constants)
    assert fitted is not None
    found = replace(
        known,
        constants=fitted.constants,
        nearby=nearby_runs(timed, everything, fitted.constants),
        state="measured",
        borrowed_from="",
        rows=len(timed.readings),
        source=f"{ROWS_FILE}: {counted(len(timed.readings), 'trial')}, "
        f"near {known.lender or family}",
    )
    profile = Profile(calibration=rounded(found), groups=tuple(dict.fromkeys(timed.data.groups)))
    path = write_profile(run / PROFILES_FOLDER, profile)
    read_calibration.cache_clear()
    return [path]
