"""Files that are whole or absent: atomic writes inside one folder, bounded reads.

A write goes to a temporary file in the same folder, is flushed to the disk and then renamed over
the target. Whatever stops it (full disk, kill, power), the target is the old file or the new one,
never half of either. A read is bounded before it starts, so a wrong path cannot fill the memory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from autoparallel.errors import ConfigError, bad_value

_SLICE_BYTES = 1 << 20


def inside(root: Path, name: str) -> Path:
    """The path of `name` under `root`, links followed.

    Raises:
        ConfigError: `name` is absolute, empty, or leads out of `root` by `..` or by a link.
    """
    leaf = Path(name).name
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        base = root.resolve()
        folder = (base / name).parent.resolve()
        plain = leaf and leaf != ".." and "\0" not in leaf and not Path(name).is_absolute()
        if plain and folder.is_relative_to(base):
            return folder / leaf
    raise bad_value("path", name, f"is not inside {root}", "use a plain relative name")


def write_bytes(root: Path, name: str, data: bytes) -> Path:
    """Write `data` to `root/name` atomically, making folders as needed; returns the path.

    Raises:
        ConfigError: the name leaves `root`, or the file cannot be written; an earlier file stays.
    """
    target = inside(root, name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, data)
    except OSError as error:
        raise ConfigError(
            f"{target}: cannot be written ({error.strerror or error}); an earlier file there is "
            "unchanged; free some space or choose another folder"
        ) from error
    return target


def check_name(field: str, path: Path) -> None:
    """Refuse a path that no saved plan could hold: it is kept there as text in UTF-8.

    Raises:
        ConfigError: its name is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        rule, hint = "has a name that is not UTF-8, and plans keep it as text", "rename it"
        raise bad_value(field, ascii(str(path)), rule, hint) from None


def write_text(root: Path, name: str, text: str) -> Path:
    """`write_bytes` of UTF-8 text, line ends as given."""
    return write_bytes(root, name, text.encode("utf-8"))


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """The content of a regular file of at most `limit_bytes` bytes.

    Raises:
        ConfigError: no such file, not a regular file, too big, or unreadable.
    """
    try:
        if not path.is_file():
            if path.is_dir():
                raise bad_value("file", str(path), "is a folder", "name a file in it")
            raise bad_value("file", str(path), "is not an existing regular file", "check its path")
        with path.open("rb") as stream:
            data = stream.read(limit_bytes + 1)
    except (OSError, ValueError) as error:
        raise bad_value("file", str(path), f"cannot be read ({error})") from error
    if len(data) > limit_bytes:
        raise bad_value("file", str(path), f"is larger than {limit_bytes} bytes")
    return data


def read_text(path: Path, limit_bytes: int) -> str:
    """`read_bytes` as UTF-8; a byte-order mark is dropped.

    Raises:
        ConfigError: as `read_bytes`, or not UTF-8.
    """
    try:
        return read_bytes(path, limit_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise bad_value("file", str(path), f"is not UTF-8 text ({error.reason})") from error


def _replace(target: Path, data: bytes) -> None:
    """Temporary file beside `target`, fsync, rename, fsync of the folder."""
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}-{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:_SLICE_BYTES]) :]


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; some file systems have no such call, which is fine."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
