"""A job and its result, for tests of what handles them."""

from __future__ import annotations

from autoparallel import catalog
from autoparallel.layout import Layout
from autoparallel.profiling.job import Job, RankReport, Result, timing

JOB = Job(
    model=catalog.model("gpt-tiny"),
    layout=Layout.parse("tp2 pp1 mbs2 sp zero1 recompute=full/block/2"),
    num_gpus=4,
    global_batch_size=16,
    seq_length=64,
    environment={"A": "b"},
)
RESULT = Result(
    trial=JOB.trial,
    outcome="ok",
    device="cpu",
    impl="local",
    losses=(5.5, None),
    ranks=(RankReport(rank=0, peak_rss_bytes=10),),
    versions={"torch": "2.6"},
    **timing(JOB, (0.2, 0.1, 0.4)),
)
