"""Profiles: a file written is the file read, and what is missing is borrowed and says so."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel.calibration.profile_file import Profile, profile_text, rounded, write_profile
from autoparallel.constants import (
    CONSTANT_NAMES,
    Constants,
    MemoryConstants,
    bounds,
    memory_bounds,
)
from autoparallel.errors import ConfigError, ProfileError
from autoparallel.nearby import PLACE, nearby_of, nearby_text
from autoparallel.profiles import (
    BORROWED_SPREAD,
    Calibration,
    Spread,
    calibration,
    first_calibration,
    read_calibration,
)
from autoparallel.strict_yaml import read_yaml


def between(limits):
    return st.floats(*limits, allow_nan=False)


CALIBRATIONS = st.builds(
    Calibration,
    family=st.just("megatron-hopper"),
    constants=st.builds(Constants, **{n: between(bounds(n)) for n in CONSTANT_NAMES}),
    memory=st.builds(
        MemoryConstants,
        **{f.name: between(memory_bounds(f.name)) for f in fields(MemoryConstants)},
    ),
    spread=st.builds(Spread, **{f.name: between((0.0, 5.0)) for f in fields(Spread)}),
    state=st.just("measured"),
    rows=st.integers(0, 10**6),
    measured_names=st.sets(st.sampled_from(CONSTANT_NAMES)).map(
        lambda names: tuple(n for n in CONSTANT_NAMES if n in names)
    ),
    source=st.text(
        st.characters(exclude_categories=("C", "Z"), exclude_characters="$"), max_size=30
    ),
)


@given(CALIBRATIONS)
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_back_exactly(tmp_path_factory, found):
    profile = Profile(
        calibration=found, groups=('a "b"', "c: d"), memory_measured=("fragmentation",)
    )
    path = write_profile(tmp_path_factory.mktemp("profiles"), profile)
    assert asdict(read_calibration(path)) == asdict(rounded(found))


@given(CALIBRATIONS)
@settings(max_examples=20, deadline=None)
def test_rounding_is_small_and_done_once(found):
    once = rounded(found)
    assert asdict(rounded(once)) == asdict(once)
    for name in CONSTANT_NAMES:
        value = getattr(found.constants, name)
        assert getattr(once.constants, name) == pytest.approx(value, rel=5e-4)


def test_the_file_says_what_a_reader_wants_to_know(tmp_path):
    found = Calibration(
        family="megatron-hopper", rows=7, measured_names=("bubble",), source="runs.csv: 7 rows"
    )
    profile = Profile(
        calibration=found,
        groups=("one", "two"),
        intervals={"bubble": (0.9, 1.0)},
        memory_measured=("fragmentation",),
        fitted="2026-11-21",
        versions={"python": "3.11"},
    )
    data = read_yaml(write_profile(tmp_path, profile))
    assert list(data) == [
        "family", "fitted", "source", "rows", "groups", "versions", "constants", "memory", "spread"
    ]  # fmt: skip
    assert data["groups"] == ["one", "two"]
    bubble = data["constants"]["bubble"]
    assert bubble == {"value": 0.95, "low": 0.9, "high": 1.0, "state": "measured"}
    assert data["constants"]["tp_exposed"]["state"] == "assumed"
    assert data["memory"]["fragmentation"]["state"] == "measured"
    for name in CONSTANT_NAMES:
        assert Constants.__dataclass_fields__[name].metadata["meaning"] in profile_text(profile)


@pytest.mark.parametrize("source", ["a\nb: c", "\ud800", "${HOME}", "\x00", "\u2028"])
def test_odd_sources_still_make_a_file(tmp_path, source):
    path = write_profile(tmp_path, Profile(calibration=Calibration(family="x", source=source)))
    assert "\n" not in read_calibration(path).source


def test_a_family_does_not_lead_out_of_the_folder(tmp_path):
    profile = Profile(calibration=Calibration(family="../../elsewhere"))
    with pytest.raises(ConfigError):
        write_profile(tmp_path / "profiles", profile)
    assert list(tmp_path.rglob("elsewhere*")) == []


# --- finding one ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    def add(*families):
        for i, family in enumerate(families):
            constants = replace(Constants(), gemm_efficiency=0.5 + i / 100)
            found = Calibration(family=family, constants=constants, rows=9, source="test")
            write_profile(tmp_path, Profile(calibration=found))
        return tmp_path

    return add


def test_its_own_profile_is_used_as_it_is(folder):
    found = calibration("megatron", "hopper", folder("megatron-ampere", "megatron-hopper", "all"))
    assert (found.family, found.state, found.borrowed_from) == ("megatron-hopper", "measured", "")
    assert found.constants.gemm_efficiency == 0.51
    assert found.spread == Spread()


@pytest.mark.parametrize(
    ("mine", "shipped", "source"),
    [
        (("nemo-cpu", "all"), ("nemo-hopper", "all"), "shipped nemo-hopper"),
        (("nemo-hopper",), ("nemo-hopper", "all"), "mine nemo-hopper"),
        (("nemo-cpu", "all"), ("nemo-ampere", "all"), "mine all"),
        ((), ("nemo-hopper",), "shipped nemo-hopper"),
    ],
)
def test_a_folder_in_front_speaks_for_its_own_families_only(tmp_path, mine, shipped, source):
    for name, families in {"mine": mine, "shipped": shipped}.items():
        for family in families:
            found = Calibration(family=family, rows=9, source=f"{name} {family}")
            write_profile(tmp_path / name, Profile(calibration=found))
    found = first_calibration("nemo", "hopper", (tmp_path / "mine", tmp_path / "shipped"))
    assert found.source == source
    assert bool(found.borrowed_from) == source.endswith(" all")


@pytest.mark.parametrize(("mine", "shipped", "lender"), [(3, 9, "shipped"), (9, 3, "mine")])
def test_of_two_fits_to_everything_that_of_more_runs_is_borrowed(tmp_path, mine, shipped, lender):
    for name, rows in (("mine", mine), ("shipped", shipped)):
        found = Calibration(family="all", rows=rows, source=name)
        write_profile(tmp_path / name, Profile(calibration=found))
    folders = (tmp_path / "mine", tmp_path / "shipped")
    assert first_calibration("nemo", "ampere", folders).source == lender


@pytest.mark.parametrize(
    ("there", "lender"),
    [
        (("megatron-ampere", "nemo-hopper", "all"), "all"),
        (("megatron-ampere", "megatron-volta"), "megatron-ampere"),
        (("megatron-ampere", "nemo-hopper", "nemo-volta"), "nemo-hopper"),
    ],
)
def test_a_borrowed_profile_says_so_and_is_wider(folder, there, lender):
    found = calibration("megatron", "hopper", folder(*there))
    assert (found.family, found.state, found.borrowed_from) == (
        "megatron-hopper",
        "assumed",
        lender,
    )
    assert found.measured_names == ()
    for f in fields(Spread):
        assert getattr(found.spread, f.name) == pytest.approx(
            BORROWED_SPREAD * getattr(Spread(), f.name)
        )


def test_code_unlike_all_others_is_borrowed_of_itself(folder):
    there = folder("nanotron-hopper", "nemo-blackwell", "all")
    assert calibration("nanotron", "blackwell", there).borrowed_from == "nanotron-hopper"
    assert calibration("nanotron", "blackwell", there).lender == "nanotron-hopper"
    assert calibration("fsdp", "blackwell", there).borrowed_from == "all"
    assert calibration("fsdp", "blackwell", there).lender == "everything measured"
    assert calibration("fsdp", "blackwell", folder("fsdp-blackwell")).lender == ""


@pytest.mark.parametrize(
    ("there", "fragmentation", "sigma"),
    [
        (("nemo-hopper", "megatron-volta", "all"), 0.11, 0.1),
        (("nemo-hopper", "fsdp-hopper", "all"), 0.10, 0.15),
    ],
)
def test_memory_is_borrowed_of_the_same_code_first(tmp_path, there, fragmentation, sigma):
    for i, family in enumerate(there):
        memory = replace(
            MemoryConstants(), fragmentation=0.1 + i / 100, residual_copies=1.0, error_sigma=0.1
        )
        found = Calibration(family=family, memory=memory, rows=9, source="test")
        write_profile(tmp_path, Profile(calibration=found))
    memory = calibration("megatron", "hopper", tmp_path).memory
    assert memory.fragmentation == pytest.approx(fragmentation)
    assert memory.error_sigma == pytest.approx(sigma)
    assert memory.residual_copies == (1.0 if sigma == 0.1 else 0.0)


def test_measured_runs_are_kept_with_a_family_and_lent_to_none(tmp_path):
    runs = nearby_of(np.full((2, len(PLACE)), 4.0), np.array([1.04, 1.05]))
    for family in ("megatron-hopper", "all"):
        found = Calibration(family=family, nearby=runs, rows=9, source="test")
        write_profile(tmp_path, Profile(calibration=found))
    own = calibration("megatron", "hopper", tmp_path).nearby
    assert nearby_text(own) == nearby_text(runs)
    assert own.runs.tolist() == [2]
    assert calibration("fsdp", "hopper", tmp_path).borrowed_from == "all"
    assert calibration("fsdp", "hopper", tmp_path).nearby is None


def test_nothing_to_borrow_leaves_priors(tmp_path):
    found = calibration("megatron", "hopper", tmp_path)
    assert (found.state, found.rows) == ("assumed", 0)
    assert asdict(found.constants) == asdict(Constants())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("constants: {gemm_efficiency: 1.5}", ("gemm_efficiency", "1.5", "0.4 to 1.15")),
        ("constants: {gemm_efficiency: {value: 0.1}}", ("gemm_efficiency", "0.1", "bounds")),
        ("constants: {gemm_efficency: 0.5}", ("gemm_efficency", "did you mean 'gemm_efficiency'")),
        ("constants: {gemm_efficiency: fast}", ("gemm_efficiency", "not a number")),
        ("constants: {gemm_efficiency: true}", ("gemm_efficiency", "not a number")),
        ("constants: {gemm_efficiency: {low: 0.5}}", ("gemm_efficiency", "None")),
        ("constants: [1, 2]", ("constants", "not a mapping")),
        ("memory: {fragmentation: 7}", ("memory.fragmentation", "bounds")),
        ("spread: {compute: -0.1}", ("spread.compute", "bounds")),
        ("constant: {}", ("'constant'", "did you mean 'constants'")),
        ("nearby: [1, 2]", ("nearby: its columns are not hidden_size", "calibrate again")),
    ],
)
def test_a_bad_profile_is_refused_with_its_file(tmp_path, content, words):
    path = tmp_path / "training" / "megatron-hopper.yaml"
    path.parent.mkdir()
    path.write_text(content + "\n")
    with pytest.raises(ProfileError) as caught:
        calibration("megatron", "hopper", tmp_path)
    assert all(word in str(caught.value) for word in (*words, "megatron-hopper.yaml"))
