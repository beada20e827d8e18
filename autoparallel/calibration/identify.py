"""Which constants the runs determine, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autoparallel.calibration.fit import Data, Fit, constants_at, log_error
from autoparallel.constants import bounds

Column = NDArray[np.float64]

STEP = 1e-3
"""Change of a constant's log over which the sensitivity of the errors is taken."""
NO_EFFECT = 0.01
"""A constant has no effect when doubling it changes no step by more than about this."""
NOT_TOLD = "not told apart from"
ALIKE = 0.9
"""Cosine of two constants' effects from which the runs cannot tell them apart."""


def sensitivities(data: Data, fit: Fit) -> dict[str, Column]:
    """Change of every run's log error with the log of each fitted constant, [N] each."""
    at_fit = log_error(data, fit.constants)
    found = {}
    for name in fit.deviations:
        value = max(float(getattr(fit.constants, name)), 1e-6)
        sign = 1 if value < bounds(name)[1] * (1 - STEP) else -1
        moved = constants_at([name], np.array([np.log(value) + sign * STEP]), fit.constants)
        found[name] = (log_error(data, moved) - at_fit) / (sign * STEP)
    return found


def why_held(data: Data, fit: Fit, measured: tuple[str, ...]) -> Mapping[str, str]:
    """For each fitted constant that is not `measured`: what keeps the runs from determining it."""
    effects = sensitivities(data, fit)
    root_weight = np.sqrt(data.weights())
    reasons = {}
    for name, effect in effects.items():
        if name in measured:
            continue
        if float(np.max(np.abs(effect))) < NO_EFFECT:
            reasons[name] = "no run depends on it"
            continue
        others = {n: _cosine(effect * root_weight, e * root_weight) for n, e in effects.items()}
        del others[name]
        twin = max(others, key=lambda n: others[n])
        alike = others[twin] >= ALIKE
        reasons[name] = f"{NOT_TOLD} {twin}" if alike else "the runs hardly depend on it"
    return reasons


def _cosine(a: Column, b: Column) -> float:
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return abs(float(a @ b)) / size if size > 0 else 0.0
