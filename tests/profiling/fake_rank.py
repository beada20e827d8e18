"""Stands in for pretrain_gpt.py as one rank of a made-up world: prints what Megatron-LM would.

Memory on ranks of the first replica, step times on the world's last rank.
"""

import os
import sys

words = sys.argv[1:]
assert "--fake-process-group" in words
sizes = {
    name: int(words[words.index(f"--{name}-parallel-size") + 1])
    if f"--{name}-parallel-size" in words
    else 1
    for name in ("tensor-model", "pipeline-model", "context")
}
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
tp, pp, cp = sizes.values()
replica = rank % (world // pp) // (tp * cp)
if replica == 0:
    print(
        f"[Rank {rank}] (after 2 iterations) memory (MB) | allocated: 900.0 | "
        f"max allocated: {2000.0 + world - rank} | reserved: 2300.0 | max reserved: 2400.0"
    )
if rank == world - 1:
    iterations = int(words[words.index("--train-iters") + 1])
    for iteration in range(1, iterations + 1):
        print(
            f"[2026-11-28 02:55:41] iteration {iteration}/ {iterations} | consumed samples: 256 | "
            f"elapsed time per iteration (ms): {900 + iteration}.5 | learning rate: 1.0E-04 | "
            "lm loss: 1.1E+01 | number of skipped iterations: 0 | number of nan iterations: 0 |"
        )
print("[after training is done]")
