"""Profiling: a job in, what it measured out.

Takes a `Job` (a model, a layout, how many steps, on what), runs it through a `Launcher` (plain
processes, Ray, Slurm, Kubernetes) with real Megatron ranks or the user's own command, and returns a
`Result` whatever happens. This file imports nothing, so that a rank starts with torch and
megatron-core alone.
"""
