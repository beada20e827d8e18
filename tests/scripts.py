"""Scripts of `benchmarks/` as modules, for the tests that hold their figures."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "benchmarks"


@contextmanager
def script(name: str) -> Iterator[ModuleType]:
    """`benchmarks/<name>.py`, imported; dataclasses in it need its entry in `sys.modules`.

    Scripts import their neighbours, whose folder leads the path when one is run.
    """
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(FOLDER))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        del sys.modules[name]
