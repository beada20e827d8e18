"""The flags that serving programs accept, asked of their own parsers: profiles/serving_flags.json.

    pip download --no-deps vllm==0.33.0 sglang==0.5.23 ai-dynamo==1.6.1
    unzip -d vllm vllm-*.whl; unzip -d sglang sglang-*.whl; unzip -d dynamo ai_dynamo-*.whl
    python benchmarks/serving_flags.py vllm=vllm sglang=sglang dynamo=dynamo

No GPU and no installed engine is needed: the parsers are built from the unpacked wheels, and what
they import without using it for their flags (compiled extensions, grammar libraries) is replaced by
empty stand-ins. PyTorch (CPU), transformers and the small packages that the engines import must be
installed. TensorRT-LLM comes compiled only and is not asked.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import json
import subprocess
import sys
import types
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "profiles" / "serving_flags.json"
STAND_INS = ("llguidance", "partial_json_parser", "xgrammar", "IPython", "tensorrt_llm")
DYNAMO = ("dynamo._core", "dynamo.llm", "dynamo.prometheus_names", "dynamo.runtime")
ENGINES: dict[str, dict[str, str]] = {
    "vllm": {"vllm serve": "vllm_serve", "vllm bench serve": "vllm_bench"},
    "sglang": {"python -m sglang.launch_server": "sglang_server"},
    "dynamo": {
        "python -m dynamo.frontend": "dynamo_frontend",
        "python -m dynamo.vllm": "dynamo_vllm",
        "python -m dynamo.sglang": "dynamo_sglang",
        "python -m dynamo.trtllm": "dynamo_trtllm",
    },
}


class _AnyName(type):
    """A class with a text for every attribute and a default of None for every model field."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        nothing = types.SimpleNamespace(default=None)
        return defaultdict(lambda: nothing) if name == "model_fields" else name.lower()


class _Empty(metaclass=_AnyName):
    def __init__(self, *_: Any, **__: Any) -> None:
        """Take whatever it is given."""


class _StandIn(types.ModuleType):
    """A module whose every attribute is an empty class."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        empty = type(name, (_Empty,), {})
        setattr(self, name, empty)
        return empty


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds what is not installed: the stand-ins, and compiled extensions of the wheels."""

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.startswith((*STAND_INS, *DYNAMO)) or "._C" in name:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        del module


def vllm_platform(cuda: bool) -> None:
    """Tell vLLM that it runs on CUDA, whose defaults its parser shows; on nothing for the rest."""
    import vllm.platforms
    from vllm.platforms.interface import Platform, PlatformEnum

    kind = PlatformEnum.CUDA if cuda else PlatformEnum.UNSPECIFIED
    members = {"_enum": kind, "device_type": "cuda", "device_name": "cuda"}
    vllm.platforms._current_platform = type("Fake", (Platform,), members)()


def vllm_serve() -> argparse.ArgumentParser:
    """`vllm serve`."""
    vllm_platform(cuda=True)
    from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: argparse.ArgumentParser = make_arg_parser(FlexibleArgumentParser())
    from vllm.config.cache import KV_CACHE_DTYPES
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    checked_later = {"--kv-cache-dtype": KV_CACHE_DTYPES, "--quantization": QUANTIZATION_METHODS}
    for flag, choices in checked_later.items():
        parser._option_string_actions[flag].choices = choices
    return parser


def vllm_bench() -> argparse.ArgumentParser:
    """`vllm bench serve`."""
    vllm_platform(cuda=False)
    from vllm.benchmarks.serve import add_cli_args

    return _with(add_cli_args)


def sglang_server() -> argparse.ArgumentParser:
    """`python -m sglang.launch_server`."""
    from sglang.srt.server_args import ServerArgs

    return _with(ServerArgs.add_cli_args)


def dynamo_frontend() -> argparse.ArgumentParser:
    """`python -m dynamo.frontend`."""
    from dynamo.frontend.frontend_args import FrontendArgGroup

    return _with(FrontendArgGroup().add_arguments)


def dynamo_vllm() -> argparse.ArgumentParser:
    """Dynamo's own flags of `python -m dynamo.vllm`; the rest are those of vLLM's engine."""
    from dynamo.vllm.backend_args import DynamoVllmArgGroup

    return _with(_runtime_flags, DynamoVllmArgGroup().add_arguments)


def dynamo_sglang() -> argparse.ArgumentParser:
    """Dynamo's own flags of `python -m dynamo.sglang`; the rest are those of SGLang's server."""
    from dynamo.sglang.backend_args import DynamoSGLangArgGroup

    return _with(_runtime_flags, DynamoSGLangArgGroup().add_arguments)


def dynamo_trtllm() -> argparse.ArgumentParser:
    """`python -m dynamo.trtllm`."""
    from dynamo.trtllm.backend_args import DynamoTrtllmArgGroup

    return _with(_runtime_flags, DynamoTrtllmArgGroup().add_arguments)


def _runtime_flags(parser: argparse.ArgumentParser) -> None:
    from dynamo.common.configuration.groups.runtime_args import DynamoRuntimeArgGroup

    DynamoRuntimeArgGroup().add_arguments(parser)


def _with(*adders: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for add in adders:
        add(parser)
    return parser


def flags(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """Flag -> how many values it takes, which, and of what type."""
    found = {}
    for action in parser._actions:
        for name in action.option_strings:
            if name.startswith("--") and name != "--help":
                found[name] = _described(action)
    return dict(sorted(found.items()))


def _described(action: argparse.Action) -> dict[str, Any]:
    bare = action.nargs == 0
    entry: dict[str, Any] = {"values": 0 if bare else action.nargs or 1}
    if isinstance(action.choices, Iterable):
        entry["choices"] = sorted(map(str, action.choices))
    if not bare and action.type in (int, float, str):
        entry["type"] = action.type.__name__
    return entry


def asked(engine: str, wheel: Path, function: str) -> dict[str, Any]:
    """The flags of one program, built in a process of its own."""
    code = f"import serving_flags as s; s.answer({str(wheel)!r}, {function!r})"
    here = Path(__file__).resolve().parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{engine} {function}: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def answer(wheel: str, function: str) -> None:
    """Print the flags as JSON: what that process does."""
    sys.path.insert(0, wheel)
    sys.meta_path.append(_Finder())
    print()
    print(json.dumps(flags(globals()[function]())))


def version(wheel: Path) -> str:
    """Name and version in the wheel's metadata."""
    metadata = next(wheel.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    values = dict(line.split(": ", 1) for line in metadata.splitlines()[:5] if ": " in line)
    return f"{values['Name']}=={values['Version']}"


def main(arguments: Sequence[str]) -> None:
    """Bring the named engines of the file up to date; the others stay as they are."""
    kept: dict[str, Any] = json.loads(TARGET.read_text()) if TARGET.exists() else {}
    for argument in arguments:
        engine, _, place = argument.partition("=")
        wheel = Path(place).resolve()
        for command, function in ENGINES[engine].items():
            kept[command] = {"source": version(wheel), "flags": asked(engine, wheel, function)}
    lines = [_block(name, kept[name]) for name in sorted(kept)]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _block(name: str, block: dict[str, Any]) -> str:
    """One program: a line a flag, so that a change of version reads as a diff."""
    rows = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in block["flags"].items())
    source = json.dumps(block["source"])
    return f' {json.dumps(name)}: {{"source": {source}, "flags": {{\n{rows}\n }}}}'


if __name__ == "__main__":
    main(sys.argv[1:])
