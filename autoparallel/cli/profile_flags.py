"""The options of `profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

RunArgument: TypeAlias = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run directory of a search.")
]
TopFlag: TypeAlias = Annotated[
    int, typer.Option("--top", help="Layouts to measure.", metavar="K", min=1, max=1000)
]
BudgetFlag: TypeAlias = Annotated[
    str,
    typer.Option(
        "--budget",
        help="Wall time, such as 90s, 30m, 2h; what runs at its end is cut.",
        metavar="TIME",
    ),
]
ModeFlag: TypeAlias = Annotated[
    str, typer.Option("--mode", help="job, proxy or rank.", metavar="MODE")
]
ConcurrentFlag: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--concurrent",
        help="Trials at a time [what the GPUs hold; 1 on CPUs].",
        metavar="N",
        min=1,
        max=1000,
    ),
]
ImplFlag: TypeAlias = Annotated[
    str, typer.Option("--impl", help="Kernels: auto, te, sdpa or local.", metavar="NAME")
]
StepsFlag: TypeAlias = Annotated[
    int,
    typer.Option("--steps", help="Timed steps of a first trial.", metavar="N", min=1, max=10_000),
]
TrialTimeoutFlag: TypeAlias = Annotated[
    str, typer.Option("--trial-timeout", help="Longest a trial may run.", metavar="TIME")
]
RoomFlag: TypeAlias = Annotated[
    int, typer.Option("--room", help="Ranks at hand, for --mode proxy.", metavar="N", min=0)
]
CommandFlag: TypeAlias = Annotated[
    str, typer.Option("--command", help="Your own job, ending in @{args_file}.", metavar="COMMAND")
]
FromLogsFlag: TypeAlias = Annotated[
    Path | None,
    typer.Option("--from-logs", help="Read runs launched elsewhere; start none.", metavar="DIR"),
]
StorageFlag: TypeAlias = Annotated[
    str, typer.Option("--storage", help="Optuna storage [a file in RUN].", metavar="URL")
]
WarmStartFlag: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option("--warm-start", help="Reuse the trials of another run.", metavar="RUN"),
]
PlansSiteFlag: TypeAlias = Annotated[
    str | None, typer.Option("--site", help="Entry of site/ [the plan's own].", metavar="NAME")
]
