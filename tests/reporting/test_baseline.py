"""The user's own configuration, read back from what launches it."""

from __future__ import annotations

import pytest

from autoparallel.errors import ConfigError
from autoparallel.exporting import Run, arguments
from autoparallel.exporting.megatron_lm import text
from autoparallel.layout import Layout
from autoparallel.reporting.baseline import given

LAYOUTS = (
    "tp8 pp8 mbs1 sp zero1 recompute=full/uniform/1",
    "tp4 pp8 vpp3 mbs1 sp zero1 recompute=core_attn+layernorm",
    "tp8 pp4 vpp3 group8 mbs1 sp zero1 overlap=none",
    "tp8 pp4 mbs1 zero0 recompute=full/block/4 overlap=grad+p2p",
    "tp4 pp8 cp2 cpcomm=a2a mbs1 sp zero1",
    "tp8 pp8 mbs1 sp zero1 stages=11,12*6,13 prec=fp8-tensorwise grad=bf16",
    "tp8 pp1 mbs1 zero3 prec=bf16",
    "tp8 pp8 mbs1 sp zero1 offload=opt0.5",
)


@pytest.mark.parametrize("words", LAYOUTS)
def test_exported_arguments_are_read_back_as_the_layout(tmp_path, run, words):
    layout = Layout.parse(words)
    tokens = arguments(run.request.model, layout, 64, 64, 2048, Run())
    path = tmp_path / "args.txt"
    path.write_text(text(tokens))
    found = given(str(path), run.request)
    assert str(found.layout) == str(layout)
    assert found.notes == ()


SCRIPT = """#!/bin/bash
# --tensor-model-parallel-size 16 is a comment
export TP=8
PP="4"
MODEL_ARGS=(
    --num-layers 96 --hidden-size 12288
    --seq-length ${SEQ:-2048}
)
PARALLEL="--tensor-model-parallel-size ${TP} \\
    --pipeline-model-parallel-size=$PP --sequence-parallel"
torchrun --nproc_per_node 8 pretrain_gpt.py ${MODEL_ARGS[@]} $PARALLEL \\
    --micro-batch-size 2 --global-batch-size 512 --use-distributed-optimizer \\
    --recompute-activations --overlap-grad-reduce --num-layers-per-virtual-pipeline-stage 8
"""


def test_a_script_is_read_with_its_variables_and_not_run(tmp_path, run):
    path = tmp_path / "run.sh"
    path.write_text(SCRIPT)
    found = given(str(path), run.request)
    wanted = "tp8 pp4 vpp3 mbs2 sp zero1 recompute=core_attn overlap=grad+p2p"
    assert str(found.layout) == wanted
    assert any("global_batch_size: the file has 512, the plan 64" in n for n in found.notes)


LOG = """[default0]:using world size: 64, data-parallel size: 1
[default0]:------------------------ arguments ------------------------
[default0]:  context_parallel_size ........................... 1
[default0]:  num_layers ...................................... 96
[default0]:  overlap_grad_reduce ............................. False
[default0]:  overlap_p2p_comm ................................ False
[default0]:  pipeline_model_parallel_size .................... 8
[default0]:  recompute_granularity ........................... full
[default0]:  recompute_method ................................ block
[default0]:  recompute_num_layers ............................ 2
[default0]:  sequence_parallel ............................... True
[default0]:  tensor_model_parallel_size ...................... 8
[default0]:  use_distributed_optimizer ....................... True
[default0]:  virtual_pipeline_model_parallel_size ............ None
[default0]:  world_size ...................................... 128
[default0]:-------------------- end of arguments ---------------------
 iteration 1/ 50 | elapsed time per iteration (ms): 99000.0 | learning rate: 1
 iteration 2/ 50 | elapsed time per iteration (ms): 9000.0 | learning rate: 1
 iteration 3/ 50 | elapsed time per iteration (ms): 8000.0 | learning rate: 1
 iteration 4/ 50 | elapsed time per iteration (ms): 8200.0 | learning rate: 1
"""


def test_a_log_gives_its_arguments_and_its_step_time(tmp_path, run):
    path = tmp_path / "megatron.log"
    path.write_text(LOG)
    found = given(str(path), run.request)
    assert str(found.layout) == "tp8 pp8 mbs1 sp zero1 recompute=full/block/2 overlap=p2p"
    assert found.iteration_s == pytest.approx(8.1)
    assert any("world_size: the file has 128" in note for note in found.notes)


BRIDGE = """
model:
  _target_: megatron.bridge.models.GPTProvider
  tensor_model_parallel_size: 4
  pipeline_model_parallel_size: 8
  virtual_pipeline_model_parallel_size: 6
  sequence_parallel: true
train: {micro_batch_size: 1, global_batch_size: 64}
ddp: {use_distributed_optimizer: true, overlap_grad_reduce: true, grad_reduce_in_fp32: false}
optimizer: {use_distributed_optimizer: false}
mixed_precision: bf16_with_fp8_subchannel_scaling_mixed
"""


def test_a_bridge_file_is_read_from_its_sections(tmp_path, run):
    path = tmp_path / "bridge.yaml"
    path.write_text(BRIDGE)
    wanted = "tp4 pp8 vpp6 mbs1 sp zero1 prec=fp8-blockwise grad=bf16 overlap=grad+p2p"
    assert str(given(str(path), run.request).layout) == wanted


def test_a_layout_is_itself(run):
    assert given("tp8 pp8 mbs1", run.request).layout == Layout.parse("tp8 pp8 mbs1")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.sh", None, "is not an existing file"),
        ("empty.sh", "echo hello", "names none of"),
        ("odd.sh", "--tensor-model-parallel-size $TP", "tensor_model_parallel_size: '$TP'"),
        ("odd.yaml", "model: [", "YAML"),
        ("odd.log", "x: tensor_model_parallel_size ...... -3", "is not an integer >= 1"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, run, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as error:
        given(str(path), run.request)
    assert words in str(error.value)
