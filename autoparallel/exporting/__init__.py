"""Launch files: a layout written down for the program that will run it.

One file a framework and one a launcher. A framework's exporter takes a `TrainingJob` and gives a
`Program`: its own files (arguments, TOML, YAML, JSON) and how `torchrun` starts it. A launcher
wraps the script of one node for a scheduler. Everything is text; writing it to disk is the caller's
business.
"""

from autoparallel.exporting.job import Run, TrainingJob
from autoparallel.exporting.megatron_lm import arguments, environment
from autoparallel.exporting.program import Program

__all__ = ["Program", "Run", "TrainingJob", "arguments", "environment"]
