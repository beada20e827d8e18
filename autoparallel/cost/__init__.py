"""What a layout costs: compute, communication, schedule, memory, and the step they add up to.

Takes a `Case` (model letters, machine numbers, layout columns, framework traits, calibrated
constants), each scalar or [N]; returns step time and memory with their parts. NumPy only, no I/O.
"""
