"""What a run without TransformerEngine does in its place, seen from inside a worker."""

import subprocess
import sys

import pytest

from autoparallel import catalog
from autoparallel.layout import Layout
from autoparallel.profiling.job import Job

pytestmark = pytest.mark.megatron
pytest.importorskip("megatron.core")

RUN = """
import os, sys
from autoparallel.profiling.job import Job
from autoparallel.profiling.worker import rank
job = Job.parse(sys.stdin.read())
place = rank.Place(rank=0, world_size=1, local_rank=0)
device, impl = rank._prepared(job, place)
rank._prepared = lambda *_: (device, impl)
{watch}
rank.run_rank(job, place, lambda *_: None)
print(found)
"""
OPTIMIZER_STEPS = """
from autoparallel.profiling.worker import network
found, own = [], network.network
def watched(*given):
    net = own(*given)
    taken = net.optimizer.step
    def step():
        ok, norm, zeros = taken()
        found.append((ok, norm > 0, all(g.get("fused") for g in net.optimizer.param_groups)))
        return ok, norm, zeros
    net.optimizer.step = step
    return net
network.network = watched
"""
RECEIVED = """
import torch
import megatron.core.pipeline_parallel.p2p_communication as pipeline
import megatron.core.tensor_parallel.mappings as mappings
found = []
def watched(module, name, of):
    own = getattr(module, name)
    def call(*given, **options):
        for tensor in of(given, options):
            with torch.no_grad():
                tensor.fill_(float("nan"))
        done = own(*given, **options)
        found.extend(bool(torch.isfinite(t).all()) for t in of(given, options))
        return done
    return lambda: setattr(module, name, call)
from autoparallel.profiling.worker import made_up_world
both = ("tensor_recv_prev", "tensor_recv_next")
names = lambda given, options: [t for n in both if (t := options[n]) is not None]
joined = made_up_world.join
def join(*given):
    joined(*given)
    watched(pipeline, "_batched_p2p_ops", names)()
    watched(mappings, "dist_reduce_scatter_func", lambda given, options: given[:1])()
made_up_world.join = join
"""


def seen(watch, layout, gpus=1, **more):
    usual = {"global_batch_size": 4, "seq_length": 32, "steps": 2, "warmup_steps": 0}
    job = Job(
        model=catalog.model("gpt-tiny"),
        layout=Layout.parse(layout),
        num_gpus=gpus,
        device="cpu",
        impl="sdpa",
        **{**usual, **more},
    )
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(watch=watch)],
        input=job.text(),
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), **address},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("words", ["zero0", "zero1", "zero0 prec=fp16"])
def test_every_step_ends_with_a_fused_optimizer_step(words):
    assert seen(OPTIMIZER_STEPS, f"tp1 mbs2 {words}") == "[(True, True, True), (True, True, True)]"


def test_what_a_made_up_world_sends_are_numbers():
    last = {"mode": "rank", "rank": 6, "global_batch_size": 8}
    found = seen(RECEIVED, "tp2 pp2 mbs1 sp zero1", 8, **last)
    assert "True" in found
    assert "False" not in found
