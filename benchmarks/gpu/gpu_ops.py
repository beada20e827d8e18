"""Operator tables of one GPU, in pieces: what `autoparallel measure-ops` does, without its CLI.

PYTHONPATH=. python benchmarks/gpu/gpu_ops.py --out DIR [--device cuda|cpu] [--budget-s 500]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from autoparallel.profiling.operators import KINDS, measure
from autoparallel.profiling.subprocess_launcher import SubprocessLauncher


def main() -> None:
    """Measure what is missing, as long as the budget lasts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--gpu", help="entry of the catalog, for a name that is not known")
    parser.add_argument("--budget-s", type=float, default=500.0)
    arguments = parser.parse_args()
    found = measure(
        arguments.out,
        SubprocessLauncher(),
        device=arguments.device,
        gpu=arguments.gpu,
        kinds=tuple(arguments.kind or KINDS),
        budget_s=arguments.budget_s,
        progress=lambda text: print(text, flush=True),
    )
    print(f"{found.taken} samples taken, {found.left} left; files: {', '.join(found.files) or '-'}")


if __name__ == "__main__":
    main()
