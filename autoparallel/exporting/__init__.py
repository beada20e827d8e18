"""Launch files: a layout written down for the program that will run it.

One file a launcher or framework. Each takes a model, a layout and the job around it, and returns
text or tokens; writing them to disk is the caller's business. `megatron_lm` gives the complete
argument list of Megatron-LM's `pretrain_gpt.py` at one pinned version (its field -> flag table is
`megatron_flags`), the environment, and the script that ties them together.
"""

from autoparallel.exporting.megatron_lm import Run, arguments, environment

__all__ = ["Run", "arguments", "environment"]
