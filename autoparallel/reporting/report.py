"""A report: runs in, a page and its trace file out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoparallel import files
from autoparallel.envelope import plan_kind
from autoparallel.errors import ConfigError, bad_value
from autoparallel.reporting.baseline import given
from autoparallel.reporting.candidates import read_candidates
from autoparallel.reporting.comparison import comparison_page
from autoparallel.reporting.page import GENERATOR, Page, html
from autoparallel.reporting.run import TrainingRun, read_training_run
from autoparallel.reporting.serving import read_serving_run, serving_page
from autoparallel.reporting.timeline import TRACE_ENDING, pipeline_step, trace_text
from autoparallel.reporting.training import Progress, Sources, training_page

REPORT_FILE = "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A page and the files that go beside it, by the ending that follows the page's name."""

    page: Page
    beside: dict[str, str]


def silent(_: str) -> None:
    """Progress that nobody reads."""


def training_report(run: TrainingRun, baseline: str = "", progress: Progress = silent) -> Report:
    """The report of one training run.

    Args:
        run: From `read_training_run`.
        baseline: A layout, or the path of a script, a YAML file or a log.
        progress: Told what is being worked on.

    Raises:
        ConfigError: a baseline or a file of candidates that cannot be used.
    """
    own = given(baseline or run.request.baseline, run.request) if _has(run, baseline) else None
    progress("reading the candidates")
    found = read_candidates(run.folder)
    progress("simulating the pipeline")
    step = pipeline_step(run, run.winner.layout)
    sources = Sources(run=run, baseline=own, candidates=found, step=step)
    title = f"{run.request.model.name}, {run.winner.layout}"
    return Report(
        page=training_page(sources, progress), beside={TRACE_ENDING: trace_text(step, title)}
    )


def _has(run: TrainingRun, baseline: str) -> bool:
    return bool(baseline or run.request.baseline)


def write_report(report: Report, path: Path) -> list[Path]:
    """Write the page to `path` and the other files beside it; returns all paths.

    Raises:
        ConfigError: `path` is a file that is not a report, or cannot be written.
    """
    if path.exists() and not _is_report(path):
        rule = "is an existing file that is no report"
        raise bad_value("--out", str(path), rule, "name another file; nothing was written")
    folder = path.parent
    written = [files.write_text(folder, path.name, html(report.page))]
    return written + [
        files.write_text(folder, path.stem + ending, text) for ending, text in report.beside.items()
    ]


def _is_report(path: Path) -> bool:
    """Whether an earlier report stands there, which a new one may replace."""
    try:
        with path.open("rb") as stream:
            return GENERATOR.encode() in stream.read(512)
    except OSError:
        return False


def read_report(paths: Sequence[Path], baseline: str = "", progress: Progress = silent) -> Report:
    """The report of one run, or of several compared.

    Raises:
        ConfigError: a run or a baseline that cannot be read, or a run that is named twice.
    """
    seen: set[Path] = set()
    for path in paths:
        if (place := path.resolve()) in seen:
            raise ConfigError(f"RUN: {path} is named twice; name each run once")
        seen.add(place)
    progress("reading the runs")
    kinds = [plan_kind(path) for path in paths]
    if "serving" in kinds:
        if len(paths) > 1 or baseline:
            rule = "is a serving run, which is reported alone and without a baseline"
            raise bad_value("RUN", str(paths[kinds.index("serving")]), rule, "name one run")
        return Report(page=serving_page(read_serving_run(paths[0])), beside={})
    runs = [read_training_run(path) for path in paths]
    if len(runs) == 1:
        return training_report(runs[0], baseline, progress)
    if baseline:
        raise ConfigError("--baseline: given beside several runs; give it with one run")
    return Report(page=comparison_page(runs), beside={})
