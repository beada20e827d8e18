"""The parcel: the worker's files find in it whatever they import of this package."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from autoparallel.profiling import parcel
from autoparallel.profiling.parcel import worker_files


def imported(source: bytes) -> Iterator[str]:
    """Modules of this package that a file imports, those for the type checker alone left out."""
    tree = ast.parse(source)
    checked = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in checked:
            module = node.module or ""
            if module.split(".")[0] == "autoparallel":
                yield module


def missing(files: dict[str, bytes]) -> set[str]:
    """Modules that a file of the parcel imports and the parcel lacks."""
    wanted = {module for source in files.values() for module in imported(source)}
    paths = {module: module.replace(".", "/") for module in wanted}
    return {m for m, p in paths.items() if not {f"{p}.py", f"{p}/__init__.py"} & files.keys()}


def test_everything_that_the_worker_imports_is_in_its_parcel() -> None:
    assert missing(worker_files()) == set()


def test_a_file_left_out_would_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(name for name in parcel._SINGLE if name != "counts.py")
    monkeypatch.setattr(parcel, "_SINGLE", names)
    assert missing(worker_files()) == {"autoparallel.counts"}
