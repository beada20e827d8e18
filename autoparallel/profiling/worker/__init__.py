"""One rank of a short training run with real megatron-core, on CUDA or on a CPU.

Takes a `Job` and a place in the world (`RANK`, `WORLD_SIZE`, ... of the environment) and ends with
a `RankEnd`. Needs torch and megatron-core 0.16 and nothing else, so it runs on a bare machine from
a copied folder: `python -m autoparallel.profiling.worker FOLDER`, with `job.json` in FOLDER.

Every rank and trial is a fresh process: megatron-core keeps its groups in globals, and `cpu_shim`
changes torch itself.
"""
