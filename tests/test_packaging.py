from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from autoparallel import catalog

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, folder: Path, path: Path) -> str:
    """What `code` prints in a fresh interpreter, with `path` in front of everything installed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_room_is_a_package_and_stands_in_the_map():
    """A folder without `__init__` is invisible to import-linter."""
    package = ROOT / "autoparallel"
    folders = {path.parent for path in package.rglob("*.py")}
    assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []
    rooms = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| rooms |")[2].partition("\n\n")[0]
    named = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    mapped = re.findall(r"`(\w+)`", " ".join(named))
    assert sorted(mapped) == sorted(room for room in rooms if not room.startswith("_"))


def test_a_checkout_reads_its_own_data():
    assert catalog.data_dir() == ROOT


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    wanted = {name(item) for item in (*project["dependencies"], *extras)} - {name(project["name"])}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name(line) for line in lines if "==" in line}
    assert wanted <= pinned


def name(requirement: str) -> str:
    for mark in "=<>![; ":
        requirement = requirement.partition(mark)[0]
    return requirement.lower().replace("_", "-")


@pytest.fixture(scope="session")
def unpacked_wheel(tmp_path_factory) -> Path:
    """The wheel built from the sdist, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    left_out = shutil.ignore_patterns(
        ".git", ".venv", "*_cache", ".hypothesis", "runs", "dist", "build", "__pycache__"
    )
    shutil.copytree(ROOT, source, ignore=left_out)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.slow
def test_the_wheel_holds_all_data(unpacked_wheel):
    for group in ("search_spaces", "profiles"):
        shipped = {p.relative_to(ROOT) for p in (ROOT / group).rglob("*") if p.is_file()}
        data = unpacked_wheel / "autoparallel" / "_data"
        held = {p.relative_to(data) for p in (data / group).rglob("*") if p.is_file()}
        assert shipped
        assert held == shipped


@pytest.mark.slow
def test_the_installed_package_reads_the_wheels_data(unpacked_wheel, tmp_path):
    code = (
        "from autoparallel import catalog, training_request;"
        "print(catalog.data_dir(), training_request(model='gpt-175b', num_gpus=1024).space_name)"
    )
    printed = python(code, tmp_path, unpacked_wheel)
    assert printed == f"{unpacked_wheel / 'autoparallel' / '_data'} default"


@pytest.mark.slow
def test_the_wheel_holds_types_its_licence_and_no_tests(unpacked_wheel):
    assert {p.name for p in unpacked_wheel.iterdir() if "dist-info" not in p.name} == {
        "autoparallel"
    }
    (licence,) = unpacked_wheel.glob("*.dist-info/licenses/LICENSE")
    assert "Apache License" in licence.read_text()
    assert (unpacked_wheel / "autoparallel" / "py.typed").is_file()
