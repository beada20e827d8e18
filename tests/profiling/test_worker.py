"""Guards of the worker: every way to split a model trains exactly as one process does.

A shim or a patch that no longer fits megatron-core shows here as another loss, not as an error.
"""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from autoparallel import catalog
from autoparallel.layout import Layout
from autoparallel.profiling.job import Job
from autoparallel.profiling.launcher import run_trial
from autoparallel.profiling.parcel import unpack
from autoparallel.profiling.rank_end import RankEnd, end_file
from autoparallel.profiling.subprocess_launcher import SubprocessLauncher

pytestmark = pytest.mark.megatron
pytest.importorskip("megatron.core")

TINY = catalog.model("gpt-tiny")
MOE = replace(
    TINY,
    name="moe-tiny",
    num_moe_experts=4,
    moe_router_topk=2,
    moe_ffn_hidden_size=64,
    gated_linear_unit=True,
    activation="silu",
    add_bias_linear=False,
    normalization="RMSNorm",
    num_query_groups=2,
    position_embedding_type="rope",
    untie_embeddings_and_output_weights=True,
    extra_parameters=0,
)
ALONE = "tp1 pp1 mbs1 zero0 overlap=none"
DENSE_LAYOUTS = (
    "tp2 pp1 mbs1 zero1",
    "tp2 pp1 mbs1 sp zero1",
    "tp1 pp2 mbs1 zero1",
    "tp1 pp2 vpp2 mbs1 zero1",
    "tp1 pp1 cp2 mbs1 zero1",
)


def job(layout, gpus=2, model=TINY, **more):
    usual = {"global_batch_size": 4, "steps": 2, "warmup_steps": 0, "comparable": True}
    return Job(
        model=model,
        layout=Layout.parse(layout),
        num_gpus=gpus,
        seq_length=32,
        device="cpu",
        timeout_s=240.0,
        **{**usual, **more},
    )


def trained(folder, what):
    launcher = SubprocessLauncher()
    try:
        result = run_trial(launcher, what, folder)
    finally:
        launcher.close()
    assert result.ok, result.message + result.log_tail
    return result


@cache
def losses_alone(folder, model):
    return trained(folder, job(ALONE, 1, model)).losses


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return lambda model: losses_alone(tmp_path_factory.getbasetemp() / model.name, model)


@pytest.mark.parametrize("layout", DENSE_LAYOUTS)
def test_a_split_model_has_the_losses_of_one_process(tmp_path, alone, layout):
    result = trained(tmp_path, job(layout))
    assert result.losses == pytest.approx(alone(TINY), rel=1e-5)
    assert len(set(result.losses)) == 2
    assert (result.backend, result.impl, result.memory_kind) == ("gloo", "local", "rss")


def test_split_experts_have_the_losses_of_one_process(tmp_path, alone):
    result = trained(tmp_path, job("tp1 pp1 ep2 mbs1 zero1", model=MOE))
    assert result.losses == pytest.approx(alone(MOE), rel=1e-5)


def test_fused_attention_recomputation_and_replicas_change_no_loss(tmp_path, alone):
    layout = "tp1 pp1 mbs1 zero1 recompute=full/block/2"
    result = trained(tmp_path, job(layout, impl="sdpa"))
    assert result.losses == pytest.approx(alone(TINY), rel=1e-5)
    assert result.impl == "sdpa"


def test_one_process_stands_for_a_stage_of_a_large_world(tmp_path):
    deep = replace(TINY, num_layers=8)
    what = job("tp2 pp4 mbs1 sp zero1", 64, deep, mode="rank", rank=48, global_batch_size=32)
    result = trained(tmp_path, replace(what, comparable=False))
    assert result.backend == "fake"
    assert result.losses == ()
    whole = 220_544 + 4 * 50_000
    assert 0 < result.ranks[0].parameters < whole / 4


def test_the_worker_runs_from_a_copied_folder_without_our_dependencies(tmp_path):
    unpack(tmp_path / "copy")
    blocker = "import sys\nfor n in ('typer','hydra','pydantic','optuna','ray','rich','plotly'):\n"
    (tmp_path / "copy" / "sitecustomize.py").write_text(blocker + "    sys.modules[n] = None\n")
    (tmp_path / "job.json").write_text(job(ALONE, 1, comparable=False).text())
    code = "import autoparallel.profiling.worker.rank as r; print(r.__file__)"
    for words in (["-c", code], ["-m", "autoparallel.profiling.worker", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(tmp_path / "copy"), "OMP_NUM_THREADS": "1", **ADDRESS},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    end = RankEnd.parse((Path(tmp_path) / end_file(0)).read_text())
    assert end.outcome == "ok"
    assert end.versions["megatron-core"].startswith("0.16")


ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}


def test_what_the_worker_cannot_run_is_invalid_and_says_what_to_do(tmp_path):
    launcher = SubprocessLauncher()
    result = run_trial(launcher, job("tp1 pp1 mbs1 zero3", 1), tmp_path)
    assert result.outcome == "invalid"
    assert "--command" in result.message


@pytest.mark.megatron
@pytest.mark.parametrize(("ranks", "said"), [(16, True), (8, False)])
def test_trials_name_the_dispatcher_that_exported_files_do_not_use(ranks: int, said: bool) -> None:
    pytest.importorskip("megatron.core")
    from autoparallel.profiling.worker.config import deviations

    model = catalog.model("qwen3-30b-a3b")
    layout = Layout.parse(f"tp1 pp1 ep{ranks} mbs1 zero1")
    job = Job(model=model, layout=layout, num_gpus=16, global_batch_size=16, seq_length=4096)
    notes = deviations(job, "te")
    assert any("alltoall" in note and "deepep" in note for note in notes) == said
