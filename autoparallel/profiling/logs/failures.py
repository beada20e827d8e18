"""How a run that ended badly says so, in the words of PyTorch, NCCL, torchrun, Megatron and Slurm.

One rank's failure drags others with it: the peers of a rank that ran out of memory time out in
their collectives, and torchrun reports a crash for all. So the outcomes have an order, and the
first line of the most telling one is the message.

Source: pytorch c10/cuda/CUDACachingAllocator.cpp, c10/core/impl/alloc_cpu.cpp,
torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp, torch/distributed/elastic; NVIDIA/Megatron-LM
megatron/core/rerun_state_machine.py; SchedMD/slurm src/slurmd/slurmstepd.
"""

from __future__ import annotations

import re

from autoparallel.profiling.logs.record import Failure

_TELLING = (
    (
        "out_of_memory",
        r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory"
        r"|DefaultCPUAllocator: (?:can't allocate|not enough) memory"
        r"|Cuda failure 2? ?'out of memory'"
        r"|CUBLAS_STATUS_ALLOC_FAILED|oom[_-]kill event|Some of the step tasks have been OOM Killed"
        r"|Out of memory: Killed process",
    ),
    (
        "invalid",
        r"Unexpected result (?:nan|inf)|found NaN in local|\.py: error: |, in validate_args$",
    ),
    (
        "timeout",
        r"Watchdog caught collective operation timeout|DUE TO TIME LIMIT"
        r"|Timed out waiting \d+ms for (?:recv|send) operation|Timeout at NCCL work",
    ),
    (
        "crash",
        r"ChildFailedError|Segmentation fault|Signal \d+ \(SIG[A-Z]+\) received|^\w*Error: "
        r"|Traceback \(most recent call last\)|srun: error: .*[Ee]xited with exit code [1-9]"
        r"|Exception raised from |CANCELLED AT",
    ),
)
_PATTERNS = tuple((outcome, re.compile(pattern)) for outcome, pattern in _TELLING)
ORDER = tuple(outcome for outcome, _ in _TELLING)


def failure_in(line: str) -> Failure | None:
    """The failure a line speaks of, the most telling one it matches."""
    for outcome, pattern in _PATTERNS:
        if pattern.search(line):
            return Failure(outcome=outcome, message=line.strip()[:400])
    return None


def more_telling(new: Failure, old: Failure | None) -> bool:
    """Whether `new` says more about the cause than `old`."""
    return old is None or ORDER.index(new.outcome) < ORDER.index(old.outcome)
