"""Frameworks: shipped records, the name a measured row prints, files that do not parse."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from autoparallel import catalog
from autoparallel.errors import CatalogError, ConfigError
from autoparallel.framework import TRAIT_NAMES, framework, framework_of
from autoparallel.layout import Layout

NAMES = catalog.names("framework")
KNOBS = {f.name for f in fields(Layout)}


def written(folder: Path, text: str) -> Path:
    (folder / "framework").mkdir(exist_ok=True)
    (folder / "framework" / "mine.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_shipped_records(name: str) -> None:
    record = framework(name)
    assert record.name == name
    assert record.constants
    assert len(record.source) > 10
    assert record.legal.keys() | record.defaults.keys() <= KNOBS
    for trait in TRAIT_NAMES:
        value = getattr(record.traits, trait)
        most = 1e9 if trait in ("bucket_bytes", "shard_buffer_bytes") else 16
        assert 0 <= value <= most, trait


@pytest.mark.parametrize("name", NAMES)
def test_what_a_silent_row_gets_is_legal(name: str) -> None:
    record = framework(name)
    assert "zero_stage" in record.defaults
    for field, value in record.defaults.items():
        assert value in record.legal.get(field, (value,)), field


@pytest.mark.parametrize("name", NAMES)
def test_legal_values_are_of_the_knob_s_kind(name: str) -> None:
    for field, values in framework(name).legal.items():
        kind = type(getattr(Layout(), field))
        assert values
        assert {type(v) for v in values} == {kind}, field


def test_aliases_name_one_framework_each() -> None:
    owners: dict[str, set[str]] = {}
    for name in NAMES:
        for printed in (name, *framework(name).aliases):
            owners.setdefault(printed.lower(), set()).add(name)
    assert {printed: o for printed, o in owners.items() if len(o) > 1} == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_alias_is_known_in_any_case(name: str) -> None:
    for alias in (name, *framework(name).aliases):
        for printed in (alias, alias.upper(), alias.lower()):
            found, known = framework_of(printed)
            assert (found.name, known) == (name, True)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("Megatron-LM + something new", "megatron"),
        ("My torch loop", "fsdp"),
        ("a sharded loop (FSDP1)", "fsdp"),
        ("never heard of it", "megatron"),
        ("", "megatron"),
    ],
)
def test_an_unknown_name_gets_its_nearest_generic_record(printed: str, expected: str) -> None:
    found, known = framework_of(printed)
    assert found.name.startswith(expected)
    assert not known


def test_an_unknown_id_names_its_nearest() -> None:
    with pytest.raises(CatalogError, match="megatron-core"):
        framework("megatron-cor")


def test_a_folder_of_one_s_own_goes_in_front(tmp_path: Path) -> None:
    text = "constants: megatron\ntraits: {master_bytes: 2}\nlegal: {zero_stage: [1]}\n"
    record = framework("mine", written(tmp_path, text))
    assert record.traits.master_bytes == 2
    assert record.legal == {"zero_stage": (1,)}
    assert framework("fsdp2", tmp_path).constants == "fsdp"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("constants: megatron\nlegall: {}\n", "unknown key 'legall'; did you mean 'legal'"),
        ("constants: megatron\ntraits: {master_byte: 4}\n", "did you mean 'master_bytes'"),
        ("constants: megatron\ntraits: {master_bytes: four}\n", "master_bytes"),
        ("constants: megatron\ntraits: 4\n", "traits"),
        ("constants: megatron\nlegal: {zero_stage: 1}\n", "legal"),
        ("constants: megatron\nlegal: 3\n", "legal"),
        ("constants: megatron\nlegal: {zero_stge: [1]}\n", "did you mean 'zero_stage'"),
        ("constants: megatron\ndefaults: {zero_stage: [1]}\n", "zero_stage"),
        ("constants: megatron\naliases: one\n", "aliases"),
        ("constants: 4\n", "constants"),
        ("constants: nemo\nslow_nodes: [a]\nera_traits: {a: {dropout: 1}}\n", "slow_nodes"),
        ("constants: nemo\nera_traits: {'': {dropout: 1}}\n", "era_traits"),
        ("constants: megatron\ntraits: {master_bytes: -1}\n", "master_bytes"),
        ("aliases: [x]\n", "constants"),
        ("name: other\nconstants: megatron\n", "name"),
        ("- a\n- b\n", ""),
        ("constants: [unclosed\n", ""),
        ("constants: !!python/object:os.system x\n", ""),
    ],
)
def test_a_file_that_does_not_parse_says_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        framework("mine", written(tmp_path, text))
    assert message in str(caught.value)
    assert "mine" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_traits_of_eras_are_of_its_own_families(name: str) -> None:
    record = framework(name)
    assert record.era_traits.keys() <= {*record.eras.values(), record.slow_nodes}
    for family, changed in record.era_traits.items():
        own = record.traits_of(family)
        assert all(getattr(own, name) == value for name, value in changed.items())
        assert any(getattr(record.traits, name) != value for name, value in changed.items())
    assert repr(record.traits_of(record.constants)) == repr(record.traits)


def test_an_unknown_trait_of_an_era_is_named(tmp_path: Path) -> None:
    text = (
        "constants: nemo\neras: {old: nemo-early}\nera_traits: {nemo-early: {gather_buffer: 1}}\n"
    )
    with pytest.raises(CatalogError, match=r"nemo-early.*gather_buffers"):
        framework("mine", written(tmp_path, text))


def test_traits_of_an_era_that_is_none_are_refused(tmp_path: Path) -> None:
    text = "constants: nemo\neras: {old: nemo-early}\nera_traits: {nemo-erly: {dropout: 1}}\n"
    with pytest.raises(CatalogError, match=r"era_traits.*nemo-erly.*eras"):
        framework("mine", written(tmp_path, text))


def test_an_unknown_overlap_of_its_own_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"own_overlaps.*tpp.*tp"):
        framework("mine", written(tmp_path, "constants: nemo\nown_overlaps: [tpp]\n"))
