"""Operator tables measured on this machine.

Takes a device and how much time there is; runs matrix products, attention, memory-bound kernels and
collectives one by one, keeping every sample as it comes so that a stopped run goes on where it was.
Returns a folder `operators/` in the format of the shipped `profiles/operators`, for
`--profiles-dir`.
"""

from autoparallel.profiling.operators.measure import KINDS, Progress, measure

__all__ = ["KINDS", "Progress", "measure"]
