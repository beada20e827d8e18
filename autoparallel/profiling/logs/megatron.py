"""Lines of Megatron-LM and of Megatron-Bridge, which prints Megatron's line as well.

    [2024-04-06 02:55:45] iteration        2/     100 | consumed samples:          256 | elapsed
    time per iteration (ms): 5630.1 | throughput per GPU (TFLOP/s/GPU): 231.9 | ... | lm loss:
    2.021530E+00 | ... | number of skipped iterations:   0 | number of nan iterations:   0 |
    [Rank 1] (after 1 iterations) memory (MB) | allocated: 54250.97 | max allocated: 54250.98 |
    reserved: 61480.0 | max reserved: 61480.0

Source: NVIDIA/Megatron-LM@core_v0.16.1 megatron/training/training.py `training_log`,
megatron/training/utils.py `report_memory`; NVIDIA/Megatron-LM issue 756 (a log);
NVIDIA-NeMo/Megatron-Bridge src/megatron/bridge/training/utils/train_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from autoparallel.profiling.logs.record import Memory, Step
from autoparallel.units import MIB, MS

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
_ITERATION = re.compile(r"\biteration\s+(\d{1,12})/\s*(\d{1,12})\s*\|")
_TIME = re.compile(rf"elapsed time per iteration \(ms\):\s*({_NUMBER})\s*\|")
_FIELDS = {
    "loss": re.compile(rf"\blm loss:\s*({_NUMBER})\s*\|", re.I),
    "batch": re.compile(r"global batch size:\s*(\d{1,12})\s*\|"),
    "tokens": re.compile(rf"tokens/s(?:ec)?/GPU:?\s*({_NUMBER})\s*\|", re.I),
    "skipped": re.compile(r"number of skipped iterations:\s*(\d{1,12})\s*\|"),
    "nan": re.compile(r"number of nan iterations:\s*(\d{1,12})\s*\|"),
}
_MEMORY = re.compile(
    r"\[Rank\s+(\d{1,9})\][^\[|]*memory \(MB\)\s*\|\s*allocated:\s*[\d.]+\s*\|\s*"
    r"max allocated:\s*([\d.]{1,30})\s*\|\s*reserved:\s*[\d.]+\s*\|\s*max reserved:\s*([\d.]{1,30})"
)
FINISHED = ("[after training is done]", "[exiting program at iteration")


def steps(line: str) -> Iterator[Step]:
    """The iteration a line reports, if it is one of Megatron's."""
    at, time = _ITERATION.search(line), _TIME.search(line)
    if not at or not time:
        return
    found = {name: match.group(1) for name, p in _FIELDS.items() if (match := p.search(line))}
    yield Step(
        iteration=int(at.group(1)),
        of=int(at.group(2)),
        seconds=float(time.group(1)) * MS,
        loss=float(found["loss"]) if "loss" in found else None,
        tokens_per_s_per_gpu=float(found["tokens"]) if "tokens" in found else None,
        global_batch_size=int(found.get("batch", 0)),
        skipped=int(found.get("skipped", 0)),
        nan=int(found.get("nan", 0)),
    )


def memory(line: str) -> Iterator[Memory]:
    """Every rank's report in a line: ranks write at once, and two reports may share one line."""
    for match in _MEMORY.finditer(line):
        rank, allocated, reserved = match.groups()
        values = _decimal(allocated), _decimal(reserved)
        if None not in values:
            yield Memory(
                rank=int(rank),
                max_allocated_bytes=(values[0] or 0.0) * MIB,
                max_reserved_bytes=(values[1] or 0.0) * MIB,
            )


def _decimal(text: str) -> float | None:
    """A number, or None for digits that two ranks have written into each other."""
    try:
        return float(text)
    except ValueError:
        return None
