"""Training logs read into results.

Takes the log of a run of Megatron-LM, Megatron-Bridge, NeMo or torchtitan, in whatever state it is
(colours, ranks writing over each other, an end in the middle of a word), and the job it should be
of. Returns the `Result` that the built-in worker would have returned: step times without warm-up,
peak memory, outcome and why.
"""

from autoparallel.profiling.logs.reader import read_lines, read_log
from autoparallel.profiling.logs.record import TrainingLog
from autoparallel.profiling.logs.result import result_of

__all__ = ["TrainingLog", "read_lines", "read_log", "result_of"]
