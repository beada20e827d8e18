"""What taking the safer of tied layouts costs, and what it gains.

    python benchmarks/first_choice.py

Prints markdown: over jobs of the catalog, how likely the layout that a search names as the safer
choice fits and how much slower it is predicted than the fastest, for several costs of a failed
start.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autoparallel import planning
from autoparallel.cost.unique import gathered
from autoparallel.ranking import chances, sampled_times, short_list
from autoparallel.request import training_request

JOBS = (
    ("gpt-175b", 1024),
    ("gpt-175b", 256),
    ("gpt3-5b", 64),
    ("gpt3-20b", 64),
    ("llama-2-13b", 32),
    ("llama-3.1-8b", 8),
    ("llama-3.1-8b", 64),
    ("llama-3.1-70b", 64),
    ("llama-3.1-70b", 256),
    ("llama-3.1-70b", 1024),
    ("llama-3.1-405b", 1024),
    ("llama-3.1-405b", 4096),
    ("mixtral-8x7b", 64),
    ("mixtral-8x22b", 256),
    ("qwen2.5-32b", 64),
    ("qwen3-30b-a3b", 64),
    ("qwen3-235b-a22b", 512),
    ("deepseek-v3", 2048),
    ("gpt-oss-120b", 128),
    ("nemotron-4-340b", 1024),
    ("bloom-176b", 384),
    ("megatron-1t", 3072),
)
COSTS = (0.0, 0.03, 0.05, 0.1, 0.2)


def firsts(model: str, gpus: int) -> NDArray[np.float64]:
    """P(fits) of the choice and its time over the fastest, [costs, 2]."""
    where, result = planning.solved(training_request(model=model, num_gpus=gpus))
    if result.best is None:
        raise SystemExit(f"{model} on {gpus} GPUs: nothing fits")
    scores = result.best.scores
    own = (scores.iteration_s, scores.memory_bytes)
    rows = short_list(result.best.knobs, planning.TOP, own)
    times = sampled_times(gathered(scores.step, rows), where.calibration.spread)
    seconds, fits = scores.iteration_s[rows], scores.fits_probability[rows]
    found = []
    for cost in COSTS:
        chances.FAILED_START = cost
        first = chances.surest_choice(chances.ties(times), seconds, fits)
        found.append((fits[first], seconds[first] / seconds[0] - 1))
    return np.array(found)


def main() -> None:
    """Print the table."""
    every = np.stack([firsts(model, gpus) for model, gpus in JOBS])
    print(f"{len(JOBS)} jobs of the catalog, dgx-h100, default space.\n")
    head = ("failed start", "not the fastest", "mean P(fits)", "below 0.75", "slower", "at most")
    print("| " + " | ".join(head) + " |")
    print("| --- | --- | --- | --- | --- | --- |")
    for cost, (fits, slower) in zip(COSTS, every.transpose(1, 2, 0), strict=True):
        cells = (
            f"{cost:.0%} of the run",
            int((slower > 0).sum()),
            f"{fits.mean():.2f}",
            int((fits < 0.75).sum()),
            f"{slower.mean():.2%}",
            f"{slower.max():.2%}",
        )
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
