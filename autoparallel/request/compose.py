"""Groups and overrides put together: shipped data, the user's folder in front, Hydra on top.

Hydra is started only when it has something to do: a dotted override, or a group file with a
`defaults:` list. Both ways read every file with the same strict reader and give the same result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoparallel import catalog
from autoparallel.errors import ConfigError, bad_value, nearest, shown
from autoparallel.strict_yaml import read_yaml, refuse_code

GROUPS = ("workload", "space", "site")
"""Groups that Hydra composes; `model`, `cluster` and `gpu` are catalog entries, picked by name."""

PICKS = ("model", "cluster", "gpu", "framework", *GROUPS)
SCALARS = ("framework", "precision", "objective")
ENTRIES = ("model", "cluster", "gpu")
MAX_OVERRIDES, MAX_OVERRIDE_LENGTH = 200, 2000

_OVERRIDE = re.compile(
    r"(?P<prefix>\+\+|\+|~)?(?P<key>[A-Za-z_][\w-]*(?:\.[\w-]+)*)(?P<value>=.*)?"
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_QUOTED = re.compile(r"(['\"])(.*)\1")
_ROOT = "autoparallel_request"
_CHOSEN = "autoparallel_chosen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One override: `workload.seq_length=8192`, `~space.x`, `cluster=dgx-a100-80gb`.

    Attributes:
        text: As Hydra is given it; a value is always forced, since strict readers check the keys.
    """

    key: str
    value: str
    text: str

    @property
    def is_pick(self) -> bool:
        """Whether it names an entry of a group."""
        return self.key in PICKS


def parsed_overrides(overrides: Sequence[str]) -> tuple[Override, ...]:
    """The overrides taken apart; Hydra reads their values.

    Raises:
        ConfigError: text that is no override, or that reaches outside the configuration.
    """
    if len(overrides) > MAX_OVERRIDES:
        raise ConfigError(f"overrides: {len(overrides)} given, at most {MAX_OVERRIDES} are read")
    parsed = tuple(_parsed(text) for text in overrides)
    keys = [override.key for override in parsed]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"override: {key} is given twice; leave one")
    return parsed


def _parsed(text: str) -> Override:
    match = _OVERRIDE.fullmatch(text) if len(text) <= MAX_OVERRIDE_LENGTH else None
    if not match or not text.isprintable() or (match["value"] is None) != (match["prefix"] == "~"):
        rule = "is not KEY=VALUE"
        hint = (
            "write overrides as workload.seq_length=8192 or space.tensor_model_parallel_size=[4,8]"
        )
        raise bad_value("override", text[:200], rule, hint)
    if "${" in text:
        rule = "holds ${...}, and configuration reads nothing outside itself"
        raise bad_value("override", text, rule, "write the value")
    key, prefix = match["key"], match["prefix"] or ""
    parts = key.split(".")
    if any(part.startswith("_") for part in parts):
        raise bad_value("override", text, "names a key that instantiates or steers; data has none")
    top = (*PICKS, *SCALARS)
    if parts[0] not in top:
        raise ConfigError(f"override: unknown key {key!r}; {_nearest_key(key)}")
    if key == "cluster.gpu":
        raise bad_value("override", text, "replaces a whole record", "write gpu=NAME")
    value = (match["value"] or "=")[1:]
    forced = text if prefix == "~" else f"++{key}={value}"
    return Override(key=key, value=value, text=forced)


def _nearest_key(key: str) -> str:
    workload = ("global_batch_size", "seq_length", "tokens")
    known = {name: name for name in (*PICKS, *SCALARS)} | {k: f"workload.{k}" for k in workload}
    last = key.rpartition(".")[2]
    return f"write {known[last]}=..." if last in known else nearest(key, known.values())


def picked(override: Override) -> str:
    """The name that a pick chooses."""
    quoted = _QUOTED.fullmatch(override.value)
    return quoted[2] if quoted else override.value


def root(config_dir: Path | None) -> dict[str, str]:
    """What is chosen when nothing is said: entry of every group, and the plain values."""
    chosen = _root_file(catalog.data_dir() / "search_spaces" / "config.yaml")
    own = config_dir / "config.yaml" if config_dir else None
    return chosen | (_root_file(own) if own and own.exists() else {})


def _root_file(path: Path) -> dict[str, str]:
    values = read_yaml(path)
    chosen: dict[str, str] = {}
    defaults = values.pop("defaults", [])
    for item in defaults if isinstance(defaults, list) else [defaults]:
        if item != "_self_":
            if not isinstance(item, dict) or len(item) != 1 or not item.keys() <= set(GROUPS):
                rule = f"is not `GROUP: NAME` with a group of {', '.join(GROUPS)}"
                raise bad_value(f"{path} defaults", item, rule)
            values |= item
    known = {"cluster", *SCALARS, *GROUPS}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{path}: unknown key {shown(key)}; {nearest(key, known)}")
        if not isinstance(value, str):
            raise bad_value(f"{path} {key}", value, "is not a name")
        chosen[key] = value
    return chosen


def composed(
    chosen: Mapping[str, str],
    entries: Mapping[str, Mapping[str, Any]],
    overrides: Sequence[Override],
    config_dir: Path | None,
) -> dict[str, Any]:
    """The configuration: a mapping a group, one an entry, and the plain values.

    Args:
        chosen: Name of the entry of every group, and the plain values.
        entries: Content of the catalog entries that overrides may reach into.
        overrides: What is changed on top.
        config_dir: The user's folder.
    """
    scalars = {key: chosen[key] for key in SCALARS}
    groups = {g: _content(g, chosen[g], config_dir) for g in GROUPS}
    if not overrides and not any("defaults" in values for values in groups.values()):
        return {**scalars, **groups}
    nodes = {g: _group(g, config_dir) | {_CHOSEN: groups[g]} for g in GROUPS}
    defaults = [*({g: _CHOSEN} for g in GROUPS), "_self_"]
    base = {"defaults": defaults, **scalars, **entries}
    return compose_with_hydra(base, nodes, [override.text for override in overrides])


def _group(group: str, config_dir: Path | None) -> dict[str, dict[str, Any]]:
    """Every entry of a group: a `defaults:` list may name any of them."""
    names = catalog.names(group, config_dir)
    return {name: _content(group, name, config_dir) for name in names}


def _content(group: str, name: str, config_dir: Path | None) -> dict[str, Any]:
    """One file of a group; its `defaults:` list may name entries of the same group only."""
    values = dict(catalog.entry(group, name, config_dir))
    defaults = values.get("defaults", [])
    for item in defaults if isinstance(defaults, list) else [defaults]:
        if not isinstance(item, str) or not _NAME.fullmatch(item) or not isinstance(defaults, list):
            rule = f"is not the name of an entry of {group}/"
            raise bad_value(
                f"{group} {name} defaults", item, rule, "write defaults: [NAME, _self_]"
            )
    return values


def compose_with_hydra(
    base: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, Mapping[str, Any]]],
    overrides: Sequence[str],
) -> dict[str, Any]:
    """`base` with its `defaults:` list over `groups` and the overrides, by Hydra's compose API."""
    from hydra import compose, initialize
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with _registered(base, groups):
        try:
            with initialize(config_path=None, job_name="autoparallel", version_base="1.3"):
                config = compose(_ROOT, overrides=list(overrides))
            plain = OmegaConf.to_container(config, resolve=False)
        except (HydraException, OmegaConfBaseException, RecursionError) as error:
            given = " ".join(overrides).replace("++", "")[:200]
            hint = "write lists as KEY=[1,2] and text with commas as KEY='a,b'"
            raise ConfigError(f"override: {given}: {_first_lines(error)}; {hint}") from None
    if not isinstance(plain, dict):
        raise ConfigError("configuration: is not a mapping after its overrides")
    refuse_code(plain, "configuration")
    return {str(key): value for key, value in plain.items()}


@contextmanager
def _registered(
    base: Mapping[str, Any], groups: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> Iterator[None]:
    """The nodes in Hydra's store, and whatever Hydra application runs around us set aside."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    store = ConfigStore.instance()
    outer_store, outer_hydra = store.repo, GlobalHydra.instance().hydra
    store.repo = {key: value for key, value in outer_store.items() if key not in groups}
    GlobalHydra.instance().clear()
    try:
        store.store(name=_ROOT, node=dict(base))
        for group, entries in groups.items():
            for name, node in entries.items():
                store.store(group=group, name=name, node=dict(node))
        yield
    finally:
        store.repo = outer_store
        GlobalHydra.instance().hydra = outer_hydra


def _first_lines(error: BaseException) -> str:
    """What Hydra says, in one line, without its help links and search path."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("See ", "Config search", "provider="))]
    return " ".join(kept[:1]).replace("++", "")[:300] or type(error).__name__
