"""How a run ends: an exit code, and one line on stderr when it is not 0."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from autoparallel.errors import AutoparallelError, nearest, shown

BAD_INPUT, OWN_ERROR, INTERRUPTED = 2, 70, 130

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)

_UsageError: Any = next(
    base for base in reversed(typer.BadParameter.__mro__) if hasattr(base, "format_message")
)


def exit_code_of(command: Any, arguments: Sequence[str]) -> int:
    """Run `command`, report what went wrong, and return the exit code of the contract."""
    _make_streams_sound()
    try:
        code = command.main(list(arguments), prog_name="autoparallel", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # Typer has caught the interrupt already
            return _interrupted()
        return code if isinstance(code, int) else 0
    except typer.Exit as stop:
        return int(stop.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except AutoparallelError as error:
        if error.exit_code == OWN_ERROR:
            return _crashed(error, arguments)
        complain(str(error))
        return error.exit_code
    except _UsageError as error:
        complain(_usage(command, error))
        return BAD_INPUT
    except (BrokenPipeError, SystemExit) as stop:
        # Typer turns a closed pipe (`| head`) into exit 1, which is regress's own code.
        if isinstance(stop, SystemExit) and stop.code not in (0, 1, None):
            return stop.code if isinstance(stop.code, int) else BAD_INPUT
        _drop_stdout()
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            complain(f"file: {str(error.filename)!r} cannot be used: {error.strerror}")
            return BAD_INPUT
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            _drop_stdout()
            complain(f"output: cannot be written ({error.strerror}); send it elsewhere")
            return BAD_INPUT
        return _crashed(error, arguments)


def _make_streams_sound() -> None:
    """No output fails for what it says, or because nobody reads it.

    A stream that the caller closed (`>&-`) is as good as /dev/null; what its encoding lacks (a path
    in Latin-1, `±` in ASCII) becomes a question mark.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _interrupted() -> int:
    complain("interrupted; what was finished is kept")
    return INTERRUPTED


def complain(message: str) -> None:
    """One message on stderr."""
    print(f"autoparallel: {message}", file=sys.stderr)


def leave_at_once(error: AutoparallelError) -> NoReturn:
    """End without Python's own end, in which the client of a cluster that has gone crashes."""
    complain(str(error))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.exit_code)


def _usage(command: Any, error: Any) -> str:
    """What is wrong with the arguments, with the nearest known word and where help is."""
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "autoparallel")
    where = f"see `{path} --help`"
    message = " ".join(str(error.format_message()).split())
    if (parameter := getattr(error, "param", None)) and "Input should" in message:
        rule = message.partition("Input ")[2].partition(",")[0].rstrip(".")
        return f"{parameter.opts[0]}: {_input(error)} {rule}; {where}"
    option = getattr(error, "option_name", None)
    if option and "No such option" in message:
        if (group := str(option).lstrip("-")) in ("site", "workload"):
            return f"no such option {option}; write {group}=NAME; {where}"
        known = [name for p in context.command.params for name in p.opts] if context else []
        known = [name for name in known if name.startswith("-")]
        return f"no such option {option}; {nearest(option, known)}; {where}"
    commands = getattr(getattr(context, "command", None), "commands", {})
    if message.startswith("No such command"):
        word = next((part for part in message.split("'")[1:2]), "")
        return f"no such command {word!r}; {nearest(word, commands)}; {where}"
    if message.startswith("Missing command"):
        return f"a command is missing; {nearest('', commands)}; {where}"
    return f"{message.rstrip('.')}; {where}"


def _input(error: Any) -> str:
    """The value that Typer's reader refused, as a message quotes it."""
    with contextlib.suppress(AttributeError, LookupError):
        return shown((error.__cause__ or error.__context__).errors()[0]["input"])
    return "the value"


def _drop_stdout() -> None:
    """Whoever read us has gone: keep Python from complaining when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _crashed(error: BaseException, arguments: Sequence[str]) -> int:
    """Write a crash file and say where it is."""
    from autoparallel import __version__

    text = "\n".join(
        (
            f"autoparallel {__version__}, Python {platform.python_version()}",
            platform.platform(),
            f"arguments: {list(arguments)!r}",
            "".join(traceback.format_exception(error)),
        )
    )
    kept = "the details could not be saved"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="autoparallel-crash-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
            kept = f"the details are in {file.name}"
    except OSError:
        pass
    complain(f"our own error: {type(error).__name__}: {error}; {kept}; please report it with them")
    return OWN_ERROR
