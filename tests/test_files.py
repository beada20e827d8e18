"""Atomic writes: old or new, never half; nothing outside the folder; bounded reads."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from autoparallel import files
from autoparallel.errors import ConfigError

OLD, NEW = b"old " * 50_000, b"new!" * 1_000_000


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(".tmp"))


def test_writes_and_overwrites(tmp_path: Path) -> None:
    assert files.write_bytes(tmp_path, "a/b/plan.json", OLD) == tmp_path / "a/b/plan.json"
    files.write_bytes(tmp_path, "a/b/plan.json", NEW)
    assert (tmp_path / "a/b/plan.json").read_bytes() == NEW
    assert leftovers(tmp_path / "a/b") == []


def test_text_is_utf8_with_its_line_ends(tmp_path: Path) -> None:
    files.write_text(tmp_path, "a.txt", "α\r\nβ\n")
    assert (tmp_path / "a.txt").read_bytes() == "α\r\nβ\n".encode()


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    files.write_text(tmp_path, "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    files.write_bytes(tmp_path, "plan.json", OLD)
    real, calls = os.write, []

    def full_disk(descriptor: int, data: bytes) -> int:
        calls.append(1)
        if len(calls) > 2:
            raise OSError(code, os.strerror(code))
        return real(descriptor, data)

    monkeypatch.setattr(files.os, "write", full_disk)
    with pytest.raises(ConfigError, match=os.strerror(code)):
        files.write_bytes(tmp_path, "plan.json", NEW)
    assert (tmp_path / "plan.json").read_bytes() == OLD
    assert leftovers(tmp_path) == []


def test_failed_fsync_and_interrupt_keep_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_bytes(tmp_path, "plan.json", OLD)

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(tmp_path, "plan.json", NEW)
    assert (tmp_path / "plan.json").read_bytes() == OLD
    assert leftovers(tmp_path) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(files.os, "write", lambda fd, data: real(fd, bytes(data[:70_001])))
    files.write_bytes(tmp_path, "plan.json", NEW)
    assert (tmp_path / "plan.json").read_bytes() == NEW


def test_kill_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    files.write_bytes(tmp_path, "plan.json", b"0" * 3_000_000)
    script = textwrap.dedent("""
        import sys, pathlib
        from autoparallel import files
        n, folder = 0, pathlib.Path(sys.argv[1])
        while True:
            n += 1
            files.write_bytes(folder, "plan.json", str(n % 10).encode() * 3_000_000)
            print(n, flush=True)
    """)
    root = Path(files.__file__).resolve().parents[1]
    for delay_s in (0.0, 0.003, 0.011, 0.02):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert child.stdout is not None
        assert child.stdout.readline().strip() == b"1"
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        data = (tmp_path / "plan.json").read_bytes()
        assert len(data) == 3_000_000
        assert len(set(data)) == 1


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../../x", "", "..", ".", "a/..", "link/x", "a\0b", "a\0/b", "loop/x"],
)
def test_refuses_to_leave_the_folder(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(ConfigError):
        files.write_bytes(root, name, b"x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


def test_a_link_in_place_of_the_file_is_replaced_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.write_bytes(b"mine")
    root.mkdir()
    (root / "plan.json").symlink_to(outside)
    files.write_bytes(root, "plan.json", b"new")
    assert (outside.read_bytes(), (root / "plan.json").read_bytes()) == (b"mine", b"new")


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        files.write_bytes(tmp_path / "f", "plan.json", b"x")


def test_reads_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf12345")
    assert files.read_text(tmp_path / "a", 8) == "12345"
    with pytest.raises(ConfigError, match="larger than 7 bytes"):
        files.read_bytes(tmp_path / "a", 7)


@pytest.mark.parametrize("name", ["missing", "folder", "pipe", "bad\0name", "latin1"])
def test_unreadable_files_are_errors(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin1").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError):
        files.read_text(tmp_path / name, 100)


def test_a_name_that_is_not_utf8_cannot_be_kept_in_a_plan() -> None:
    with pytest.raises(ConfigError, match=r"config_dir: .*not UTF-8.*rename it") as caught:
        files.check_name("config_dir", Path("own\udcff"))
    str(caught.value).encode()
    files.check_name("config_dir", Path("größer"))
