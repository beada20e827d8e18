"""The package's own names, and how light it is."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import autoparallel
from autoparallel.errors import ConfigError
from autoparallel.layout import Layout

ROOT = Path(__file__).parents[2]
TINY = {"model": "gpt-tiny", "gpus": 2, "cluster": "local-cpu"}
HEAVY = ("pandas", "torch", "ray", "scipy", "hydra", "omegaconf", "plotly", "optuna")


def python(script: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd or ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_all_is_what_imports():
    for name in autoparallel.__all__:
        assert getattr(autoparallel, name).__name__ == name
        assert name in dir(autoparallel)
    assert autoparallel.__version__
    for name in (
        "search",
        "estimate",
        "validate",
        "load_plan",
        "Layout",
        "Model",
        "Cluster",
        "Plan",
    ):
        assert name in autoparallel.__all__
    with pytest.raises(AttributeError, match="serach"):
        _ = autoparallel.serach


def test_no_public_name_is_a_module():
    modules = {module.name for module in pkgutil.iter_modules(autoparallel.__path__)}
    assert not modules & set(autoparallel.__all__)


def test_import_alone_loads_nothing_else():
    heavy = ("autopa", "numpy", "yaml")
    out = python(f"import sys, autoparallel; print([m for m in sys.modules if m[:6] in {heavy}])")
    assert out == "['autoparallel']\n"


def test_a_search_loads_nothing_heavy(tmp_path):
    script = (
        "import sys, json\nfrom autoparallel.cli import main\n"
        "try: main(['search', '--model', 'gpt-tiny', '--gpus', '2', '--quiet', '--top', '1'])\n"
        f"except SystemExit as stop: print(stop.code, [m for m in {HEAVY} if m in sys.modules])"
    )
    assert python(script, tmp_path).splitlines()[-1] == "0 []"
    assert list(tmp_path.glob("runs/*/candidates.parquet"))


def test_search_and_estimate_take_the_flags_of_the_command_line():
    plan = autoparallel.search(**TINY, top=3, overrides=["space.micro_batch_size=[1]"])
    assert [entry.layout.micro_batch_size for entry in plan.entries] == [1, 1, 1]
    best = plan.entries[0]
    found = autoparallel.estimate(best.layout, **TINY)
    assert found.entry.iteration_s == pytest.approx(best.iteration_s, rel=1e-9)
    assert autoparallel.estimate(str(best.layout), **TINY) == found
    json.dumps(plan.to_json(), allow_nan=False)


def test_a_place_counts_what_is_better():
    plan = autoparallel.search(**TINY, top=100_000)
    times = [entry.iteration_s for entry in plan.entries]
    assert len(times) == plan.feasible
    slowest = plan.entries[-1]
    place = autoparallel.estimate(slowest.layout, **TINY).place
    assert place.of == plan.feasible
    assert place.rank == 1 + sum(t < slowest.iteration_s * (1 - 1e-9) for t in times)


def test_a_layouts_own_framework_is_the_one_it_is_estimated_under():
    layout = Layout.parse("tp1 pp1 mbs1 zero3 fw=fsdp2")
    by_word = autoparallel.estimate(layout, **TINY)
    by_flag = autoparallel.estimate("tp1 pp1 mbs1 zero3", **TINY, framework="fsdp2")
    assert by_word == by_flag
    assert by_word.entry.layout.framework == "fsdp2"


def test_a_layout_written_without_a_precision_runs_in_the_jobs():
    half = {**TINY, "precision": "fp16"}
    by_flag = autoparallel.estimate("tp1 pp1 mbs1 zero1", **half)
    assert by_flag == autoparallel.estimate("tp1 pp1 mbs1 zero1 prec=fp16", **half)
    assert by_flag.entry.layout.precision == "fp16"
    other = autoparallel.estimate("tp1 pp1 mbs1 zero1 prec=bf16", **half)
    assert other.entry.layout.precision == "bf16"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"clster": "x"}, ("clster", "'cluster'")),
        ({"cluster": "dgx-h10"}, ("'dgx-h10'", "'dgx-h100'")),
        ({"precision": "bf61"}, ("'bf61'",)),
        ({"baseline": "tp8 qq2"}, ("'qq2'",)),
        ({"top": 0}, ("top: 0",)),
    ],
)
def test_bad_flags_are_config_errors(flags, words):
    with pytest.raises(ConfigError) as error:
        autoparallel.search(**{**TINY, **flags})
    for word in words:
        assert word in str(error.value)
