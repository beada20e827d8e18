"""The settings that launch files may use, read from the frameworks' own sources.

    PYTHONPATH=. python benchmarks/launch_keys.py FOLDER

FOLDER holds the unpacked releases: torchtitan 0.2.2, deepspeed 0.19.8, nemo_automodel 0.7.0 and
megatron_bridge 0.3.1 (`pip download --no-deps`, then unzip or untar), and megatron-core 0.16.1.
Nothing of them is imported: dataclass fields and their annotations are read from the syntax trees
and written to `profiles/launch/`, which the tests of the exporters check every key and value with.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable
from pathlib import Path

OUT = Path(__file__).parents[1] / "profiles" / "launch"
Fields = dict[str, str]


def classes(root: Path, pattern: str) -> dict[str, ast.ClassDef]:
    """Every class of the files that match, by name."""
    found: dict[str, ast.ClassDef] = {}
    for path in sorted(root.rglob(pattern)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if not found:
        raise SystemExit(f"{root}: holds no {pattern}")
    return found


def own_fields(node: ast.ClassDef) -> Fields:
    """Annotated names of a class; pydantic's alias takes the place of the name."""
    found: Fields = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            annotation = item.annotation
            text = ast.unparse(annotation)
            text = str(ast.literal_eval(text)) if isinstance(annotation, ast.Constant) else text
            found[_alias(item) or item.target.id] = text
    return found


def _alias(item: ast.AnnAssign) -> str:
    if isinstance(item.value, ast.Call):
        for keyword in item.value.keywords:
            if keyword.arg == "alias" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    return ""


def inherited(name: str, *scopes: dict[str, ast.ClassDef]) -> Fields:
    """Fields of a class and its bases; `MCoreX` is X of the last scope."""
    scope = scopes[-1:] if name.startswith("MCore") else scopes
    plain = name.removeprefix("MCore")
    place = next((i for i, s in enumerate(scope) if plain in s), None)
    if place is None:
        return {}
    node = scope[place][plain]
    found: Fields = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            found |= inherited(base.id, *scope[place:])
    return found | own_fields(node)


def constants(paths: Iterable[Path]) -> list[str]:
    """Text constants of a module: DeepSpeed's keys."""
    found = set()
    for path in paths:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                found.add(node.value.value)
    return sorted(v for v in found if isinstance(v, str) and v.isidentifier())


def torchtitan(root: Path) -> dict[str, object]:
    """Sections of the TOML, and the arguments of the model families."""
    jobs = classes(root, "config/job_config.py")
    families = {}
    for family in ("llama3", "qwen3", "deepseek_v3"):
        known = classes(root, f"models/{family}/model/args.py")
        name = next(name for name in known if name.endswith("ModelArgs"))
        families[family] = own_fields(known[name])
    return {
        "source": "pytorch/torchtitan v0.2.2 (torchtitan 0.2.2 on PyPI)",
        "classes": {name: own_fields(node) for name, node in jobs.items()},
        "families": families,
        "moe_args": own_fields(classes(root, "models/moe/moe.py")["MoEArgs"]),
    }


def deepspeed(root: Path) -> dict[str, object]:
    """Keys of the engine's JSON."""
    zero = classes(root, "runtime/zero/*config.py")
    other = classes(root, "runtime/precision_config.py")
    parallel = classes(root, "runtime/tensor_parallel/config.py")
    places = ("constants.py", "zero/config.py")
    modules = [path for place in places for path in root.rglob(f"runtime/{place}")]
    return {
        "source": "deepspeedai/DeepSpeed v0.19.8 (deepspeed 0.19.8 on PyPI)",
        "keys": constants(modules),
        "zero_optimization": own_fields(zero["DeepSpeedZeroConfig"]),
        "offload_optimizer": own_fields(zero["DeepSpeedZeroOffloadOptimizerConfig"]),
        "bf16": own_fields(other["DeepSpeedBF16Config"]),
        "tensor_parallel": own_fields(parallel["TPTrainingConfig"]),
        "schedules": {
            name: _parameters(node)
            for name, node in classes(root, "runtime/lr_schedules.py").items()
            if name == "WarmupCosineLR"
        },
    }


def _parameters(node: ast.ClassDef) -> list[str]:
    """Parameters of a class's constructor."""
    made = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    return [a.arg for a in made.args.args if a.arg != "self"]


def automodel(root: Path) -> dict[str, object]:
    """Blocks of a recipe."""
    parts = root / "nemo_automodel" / "components"
    known = classes(parts, "distributed/config.py") | classes(parts, "distributed/mesh.py")
    known |= classes(parts, "distributed/pipelining/config.py")
    known |= classes(parts, "training/step_scheduler.py")
    known |= classes(parts, "datasets/llm/mock_iterable_dataset.py")
    known |= classes(parts, "datasets/llm/megatron_dataset.py")
    known |= classes(parts, "optim/optimizer.py") | classes(parts, "models/common/*.py")
    names = (
        "FSDP2Config",
        "ParallelismSizes",
        "PipelineConfig",
        "StepSchedulerConfig",
        "MockIterableDatasetConfig",
        "MegatronPretrainingConfig",
        "BackendConfig",
        "LRSchedulerConfig",
    )
    return {
        "source": "NVIDIA-NeMo/Automodel v0.7.0 (nemo_automodel 0.7.0 on PyPI)",
        "classes": {name: own_fields(known[name]) for name in names},
    }


def bridge(root: Path) -> dict[str, object]:
    """Parts of the ConfigContainer, with what they inherit from megatron-core 0.16.1."""
    home = root / "megatron" / "bridge"
    own = classes(home, "training/config.py") | classes(home, "training/mixed_precision.py")
    own |= classes(home, "training/tokenizers/config.py")
    own |= classes(home, "models/transformer_config.py")
    own |= classes(home, "models/gpt_provider.py") | classes(home, "models/mla_provider.py")
    core_root = core_folder()
    core: dict[str, ast.ClassDef] = {}
    for pattern in (
        "model_parallel_config.py",
        "transformer/transformer_config.py",
        "optimizer/optimizer_config.py",
        "distributed/distributed_data_parallel_config.py",
        "datasets/*config.py",
        "datasets/gpt_dataset.py",
    ):
        core |= classes(core_root, pattern)
    names = (
        "GPTModelProvider",
        "MLAModelProvider",
        "TrainingConfig",
        "OptimizerConfig",
        "DistributedDataParallelConfig",
        "SchedulerConfig",
        "MixedPrecisionConfig",
        "GPTDatasetConfig",
        "TokenizerConfig",
        "CheckpointConfig",
        "DistributedInitConfig",
        "RNGConfig",
        "LoggerConfig",
    )
    return {
        "source": "NVIDIA-NeMo/Megatron-Bridge v0.3.1 (PyPI), megatron-core 0.16.1",
        "classes": {name: inherited(name, own, core) for name in names},
    }


def core_folder() -> Path:
    """The installed megatron-core, read as files."""
    for entry in sys.path:
        folder = Path(entry) / "megatron" / "core"
        if (folder / "transformer").is_dir():
            return folder
    raise SystemExit("megatron-core is not installed")


def main() -> None:
    """Write one list a framework."""
    root = Path(sys.argv[1])
    lists = {
        "torchtitan_v0.2.2": torchtitan(root / "torchtitan"),
        "deepspeed_0.19.8": deepspeed(root / "deepspeed-0.19.8"),
        "automodel_0.7.0": automodel(root / "nemo_automodel"),
        "megatron_bridge_0.3.1": bridge(root / "megatron_bridge"),
    }
    OUT.mkdir(parents=True, exist_ok=True)
    for name, found in lists.items():
        (OUT / f"{name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        print(f"{OUT / name}.json")


if __name__ == "__main__":
    main()
