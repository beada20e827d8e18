"""Models, GPUs and clusters by name.

Takes a name (or the path of a file in the same schema, or for a model a Hugging Face `config.json`)
and returns the record. Reads only the file asked for. A user's folder with `model/`, `gpu/` and
`cluster/` inside goes in front of the shipped data.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from autoparallel.catalog_schema import (
    aliases_of,
    checkpoints_of,
    cluster_record,
    gpu_record,
    leaves,
    model_record,
    source_of,
    sources_of,
    with_weights,
)
from autoparallel.errors import CatalogError, nearest
from autoparallel.files import check_name
from autoparallel.hardware import Cluster, Gpu
from autoparallel.hf_config import from_hf_config
from autoparallel.model import Model
from autoparallel.strict_yaml import catalog_error, read_json, read_yaml

GROUPS = ("model", "gpu", "cluster", "framework", "workload", "space", "site")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SUFFIXES = (".yaml", ".yml", ".json")


def data_dir() -> Path:
    """The folder that holds `search_spaces/` and `profiles/`.

    `autoparallel/_data` in an installed wheel, the repository root in a checkout.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "_data", package.parent):
        if (folder / "search_spaces").is_dir():
            return folder
    raise CatalogError(
        f"search_spaces: not found in {package / '_data'} nor in {package.parent}; "
        "reinstall with pip install --force-reinstall autoparallel-planner"
    )


def model(name_or_path: str | Path, config_dir: str | Path | None = None) -> Model:
    """A model by catalog name, or from a YAML file or a Hugging Face `config.json`.

    Raises:
        CatalogError: no such entry, or a file that breaks the schema.
    """
    path = _path_of(name_or_path)
    if path is not None and path.is_dir():
        path = path / "config.json"
    if path is not None and path.suffix == ".json":
        return from_hf_config(read_json(path), name=_hf_name(path))
    name, values = _entry("model", name_or_path, config_dir)
    return model_record(name, values)


def gpu(name_or_path: str | Path, config_dir: str | Path | None = None) -> Gpu:
    """A GPU by catalog name or from a YAML file.

    Raises:
        CatalogError: no such entry, or a file that breaks the schema.
    """
    name, values = _entry("gpu", name_or_path, config_dir)
    return gpu_record(name, values)


def cluster(name_or_path: str | Path, config_dir: str | Path | None = None) -> Cluster:
    """A cluster, with its GPU, by catalog name or from a YAML file.

    Raises:
        CatalogError: no such entry, or a file that breaks the schema.
    """
    name, values = _entry("cluster", name_or_path, config_dir)
    gpu_name = values.get("gpu")
    if not isinstance(gpu_name, str):
        raise catalog_error(f"{name}.gpu", gpu_name, "is not the name of a GPU")
    return cluster_record(name, values, gpu(gpu_name, config_dir))


def names(group: str, config_dir: str | Path | None = None) -> tuple[str, ...]:
    """Every entry of a group, sorted, without aliases."""
    if group not in GROUPS:
        raise catalog_error("group", group, "is not a catalog group", nearest(group, GROUPS))
    return tuple(sorted({path.stem for path in _files(group, config_dir)}))


def entry(
    group: str, name_or_path: str | Path, config_dir: str | Path | None = None
) -> dict[str, object]:
    """The content of one file as written: for a group whose record another module builds.

    Raises:
        CatalogError: no such entry, or a file that cannot be read as plain data.
    """
    return _entry(group, name_or_path, config_dir)[1]


def sources(
    group: str, name_or_path: str | Path, config_dir: str | Path | None = None
) -> dict[str, tuple[object, str]]:
    """Every number of an entry as written in its file, with where it is from.

    Returns:
        Dotted field to (value, source); the source is empty where a file gives none.
    """
    name, values = _entry(group, name_or_path, config_dir)
    known = sources_of(values, name)
    return {
        field: (value, source_of(field, known))
        for field, value in leaves(values)
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _entry(
    group: str, name_or_path: str | Path, config_dir: str | Path | None
) -> tuple[str, dict[str, object]]:
    """Name and content of one file."""
    path = _path_of(name_or_path)
    if path is not None and not path.exists():
        raise _no_file(group, path, config_dir)
    path = path or _find(group, str(name_or_path), config_dir)
    values = read_yaml(path)
    aliases_of(values, path.stem)
    own = checkpoints_of(values, path.stem) if group == "model" else {}
    asked = str(name_or_path).lower()
    for other, checkpoint in own.items():
        if other.lower() == asked:
            return path.stem, with_weights(values, checkpoint)
    return path.stem, values


def _no_file(group: str, path: Path, config_dir: str | Path | None) -> CatalogError:
    """The error for a path where nothing is: perhaps `meta-llama/Llama-3.1-8B`, not a file."""
    name = path.name.lower()
    named = _NAME.fullmatch(name) and any(
        file.stem == name or _is_also_called(file, name) for file in _files(group, config_dir)
    )
    hint = f"the catalog has {name!r}" if named else "check the path, or name a catalog entry"
    return catalog_error(group, str(path), "is not a file", hint)


def _path_of(name_or_path: str | Path) -> Path | None:
    """The path meant, or None when it is a catalog name."""
    text = os.fspath(name_or_path)
    looks_like_path = isinstance(name_or_path, Path) or any(s in text for s in ("/", os.sep))
    if looks_like_path or text.lower().endswith(_SUFFIXES):
        path = Path(text).expanduser()
        check_name("path", path)
        return path
    return None


def _hf_name(path: Path) -> str:
    """A model's name from its file: the stem, or the folder of a plain `config.json`."""
    folder = path.absolute().parent.name
    return folder if path.stem == "config" and folder else path.stem


def _folders(group: str, config_dir: str | Path | None) -> list[Path]:
    """Where a group's files are, the user's folder first."""
    shipped = data_dir() / "search_spaces" / group
    if config_dir is None:
        return [shipped]
    own = Path(config_dir)
    if not own.is_dir():
        raise catalog_error("config_dir", str(config_dir), "is not a folder")
    return [own / group, shipped]


def _files(group: str, config_dir: str | Path | None) -> list[Path]:
    """All files of a group, in order of precedence."""
    return [
        path
        for folder in _folders(group, config_dir)
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.suffix in (".yaml", ".yml")
    ]


def _find(group: str, name: str, config_dir: str | Path | None) -> Path:
    """The file of the entry called, or also called, `name`."""
    if not _NAME.fullmatch(name):
        rule = "is not a name: letters, digits, dot, dash and underscore, at most 100"
        raise catalog_error(group, name, rule, "give a path ending in .yaml for a file")
    for folder in _folders(group, config_dir):
        for suffix in (".yaml", ".yml"):
            if (path := folder / f"{name.lower()}{suffix}").is_file():
                return path
    files = _files(group, config_dir)
    for path in files:
        if _is_also_called(path, name.lower()):
            return path
    known = [path.stem for path in files]
    raise catalog_error(group, name, "is not in the catalog", nearest(name.lower(), known))


def _is_also_called(path: Path, name: str) -> bool:
    """Whether `name` is an alias in `path`; the file is parsed only if the name stands in it."""
    try:
        if name.encode() not in path.read_bytes().lower():
            return False
    except OSError:
        return False
    return name in (alias.lower() for alias in aliases_of(read_yaml(path), path.stem))
