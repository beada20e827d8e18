"""The page of one serving run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autoparallel import catalog
from autoparallel.counts import counted
from autoparallel.errors import NothingFitsError, one_line
from autoparallel.inference.calibrated import serving_calibration
from autoparallel.reporting.breakdown import BROKEN_DOWN, Bar
from autoparallel.reporting.figures import serving as drawn
from autoparallel.reporting.figures import space
from autoparallel.reporting.front import Point, read_front
from autoparallel.reporting.page import Drawing, Item, Page, Prose, Section, Table
from autoparallel.reporting.serving_wording import outcome, rests_on
from autoparallel.reporting.wording import number
from autoparallel.request import ServingRequest
from autoparallel.serving_plan import ServingEntry, ServingPlan, Worker, load_serving_plan
from autoparallel.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRun:
    """A serving plan with the request it answers, and the front its search saved."""

    name: str
    plan: ServingPlan
    request: ServingRequest
    front: tuple[Point, ...] = ()


def read_serving_run(path: Path) -> ServingRun:
    """The run in a folder, or beside a `plan.json`.

    Raises:
        ConfigError: no plan there, or one that cannot be used.
        NothingFitsError: the plan is empty.
    """
    plan = load_serving_plan(path)
    if not plan.entries:
        raise NothingFitsError(f"{path}: its plan is empty, so there is nothing to report")
    folder = path if path.is_dir() else path.parent
    request = ServingRequest.from_mapping(plan.request, f"{path} request")
    name = one_line(folder.resolve().name)
    return ServingRun(name=name, plan=plan, request=request, front=read_front(folder))


def serving_page(run: ServingRun) -> Page:
    """The whole page."""
    made = run.plan.provenance
    version = made.versions.get("autoparallel", "unknown")
    return Page(
        title=f"Serving {run.request.model.name} on {run.request.cluster.name}",
        decision=decision(run),
        asked=_asked(run.request),
        facts=_facts(run.plan.entries[0]),
        sections=[
            Section(name="short-list", title="Short list", items=_short_list(run)),
            Section(name="latency", title="Latency", items=_latency(run)),
            Section(name="steps", title="Where a step goes", items=_steps(run.plan.entries)),
            Section(name="resources", title="GPUs and memory", items=_resources(run)),
            Section(name="sieve", title="What was left out", items=_sieve(run.plan)),
        ],
        footer=(
            f"Plan of {run.name}: autoparallel {version}, profiles {made.profile_digest}, "
            f"catalog {made.catalog_digest}."
        ),
    )


def decision(run: ServingRun) -> str:
    """What to deploy, in one sentence."""
    best = run.plan.entries[0]
    what = f"{best.backend} {best.mode}, {words(best)}"
    return f"Deploy {what} on {counted(best.gpus, 'GPU')}: {outcome(best)}."


def words(entry: ServingEntry) -> str:
    """The workers of a deployment: `2 × tp4`, or `prefill 4 × tp1 pp2, decode 2 × tp4`."""
    roles = ("" if w.role == "aggregated" else f"{w.role} " for w in entry.workers)
    found = zip(roles, entry.workers, strict=True)
    return ", ".join(f"{role}{w.replicas} × {sizes(w)}" for role, w in found)


def sizes(worker: Worker) -> str:
    """The parallel sizes of a worker; those of 1 beside tp are left out."""
    known = (
        ("pp", worker.pipeline_model_parallel_size),
        ("ep", worker.expert_model_parallel_size),
        ("dp", worker.attention_data_parallel_size),
    )
    rest = [f"{name}{size}" for name, size in known if size > 1]
    return " ".join([f"tp{worker.tensor_model_parallel_size}", *rest])


def _asked(request: ServingRequest) -> str:
    limits = [
        f"{name} ≤ {limit:g} ms ({request.percentile})"
        for name, limit in (
            ("TTFT", request.ttft_ms),
            ("TPOT", request.tpot_ms),
            ("request", request.e2e_ms),
        )
        if limit is not None
    ]
    load = (
        f"{request.request_rate:g} requests/s"
        if request.request_rate is not None
        else counted(request.concurrency, "client")
        if request.concurrency
        else "as many requests as the limits allow"
    )
    gpus = counted(request.num_gpus, "GPU") if request.num_gpus else "as few GPUs as needed"
    shape = f"{request.input_tokens:,} + {request.output_tokens:,} tokens a request"
    return ", ".join(
        [gpus, shape, load, *(limits or ["no limits"]), f"objective {request.objective}"]
    )


def _facts(best: ServingEntry) -> list[tuple[str, str]]:
    return [
        ("tokens/s", number(best.tokens_per_s)),
        ("tokens/s/GPU", number(best.tokens_per_s_per_gpu)),
        ("tokens/s a user", number(best.tokens_per_s_per_user, 1)),
        ("requests/s", number(best.load, 2)),
        ("first token", f"{number(best.ttft_ms)} ms"),
        ("later token", f"{number(best.tpot_ms, 1)} ms"),
        ("memory", f"{(best.memory_bytes or 0) / GIB:.1f} GiB"),
        ("chance to fit", f"{best.fits_probability or 0:.0%}"),
    ]


def _short_list(run: ServingRun) -> list[Item]:
    entries = run.plan.entries
    priced = any(e.usd_per_million_tokens is not None for e in entries)
    rows = [
        [
            f"#{e.rank}",
            f"{e.backend} {e.mode}: {words(e)}",
            f"{e.precision}, KV {e.kv_dtype}",
            number(e.tokens_per_s),
            number(e.tokens_per_s_per_gpu),
            number(e.tokens_per_s_per_user, 1),
            number(e.ttft_ms),
            number(e.tpot_ms, 1),
            number((e.memory_bytes or 0) / GIB, 1),
            number(e.fits_probability, 2),
            *([number(e.usd_per_million_tokens, 2)] if priced else []),
        ]
        for e in entries
    ]
    head = ["rank", "deployment", "precision", "tok/s", "tok/s/GPU", "tok/s/user"]
    return [
        Table(
            caption="The short list, best first",
            head=[*head, "TTFT ms", "TPOT ms", "GiB", "P(fits)", *["USD/M tokens"] * priced],
            rows=rows,
            words=frozenset({0, 1, 2}),
        ),
        Drawing(
            name="rate-figure",
            title="Output tokens a second and GPU",
            caption="Of the workers' GPUs, at the load that the limits allow.",
            figure=drawn.rates(_labelled(entries)),
        ),
        Drawing(
            name="front-figure",
            title="Throughput against speed for one user",
            caption=(
                "Up and to the right is better: the front of all deployments, limits left aside, "
                "and the short list, which keeps them."
            ),
            figure=drawn.front(_labelled(entries), run.front),
        ),
    ]


def _labelled(entries: Sequence[ServingEntry]) -> list[tuple[str, str, ServingEntry]]:
    return [(f"#{e.rank}", f"{e.backend}: {words(e)}", e) for e in entries]


def _latency(run: ServingRun) -> list[Item]:
    entries = _labelled(run.plan.entries)
    request = run.request
    return [
        Drawing(
            name="ttft-figure",
            title="Time to the first token",
            caption=f"Mean and percentiles. The limit binds the {request.percentile}.",
            figure=drawn.latency(entries, "ttft_ms", request.ttft_ms),
        ),
        Drawing(
            name="tpot-figure",
            title="Time per later token",
            caption=f"Mean and percentiles. The limit binds the {request.percentile}.",
            figure=drawn.latency(entries, "tpot_ms", request.tpot_ms),
        ),
        _origin(run),
    ]


def _origin(run: ServingRun) -> Prose:
    """Whose measured figures the first deployment rests on, or that none are known."""
    request, gpu = run.request, run.request.cluster.gpu
    shipped = catalog.data_dir() / "profiles"
    folders = (request.profiles_path, shipped) if request.profiles_path else (shipped,)
    backend = run.plan.entries[0].backend
    found = serving_calibration(backend, gpu.name, gpu.generation, folders)
    return Prose(text=rests_on(found), kind="" if found.state == "measured" else "note")


def step_bars(entries: Sequence[ServingEntry], kind: str) -> tuple[Bar, ...]:
    """Seconds of one `decode` or `prompt` step by cause."""
    return tuple(
        Bar(
            label=f"#{e.rank}",
            layout=f"{e.backend}: {words(e)}",
            parts={
                name.removeprefix(f"{kind}_"): seconds
                for name, seconds in e.parts.items()
                if name.startswith(f"{kind}_")
            },
            interval=None,
        )
        for e in entries
        if e.parts
    )


def _steps(entries: Sequence[ServingEntry]) -> list[Item]:
    found = ((kind, step_bars(entries[:BROKEN_DOWN], kind)) for kind in ("decode", "prompt"))
    return [
        Drawing(
            name=f"{kind}-figure",
            title=f"One {kind} step",
            caption="Milliseconds by cause, at the batch of the plan.",
            figure=drawn.step_parts(bars),
        )
        for kind, bars in found
        if any(bar.total for bar in bars)
    ]


def _resources(run: ServingRun) -> list[Item]:
    entries = _labelled(run.plan.entries)
    capacity = run.request.cluster.gpu.memory_bytes
    return [
        Drawing(
            name="gpus-figure",
            title="GPUs by role",
            caption="All replicas of every role.",
            figure=drawn.gpus(entries),
        ),
        Drawing(
            name="memory-figure",
            title="Memory of the fullest GPU",
            caption="With every running request at its longest; the line is one GPU's memory.",
            figure=drawn.memory(entries, capacity),
        ),
    ]


def _sieve(plan: ServingPlan) -> list[Item]:
    text = (
        f"{counted(plan.considered, 'deployment')} considered, {plan.evaluated:,} evaluated, "
        f"{plan.feasible:,} fit and keep the limits, in {plan.search_s:.2f} s."
    )
    return [
        Prose(text=text),
        Drawing(
            name="sieve-figure",
            title="What was left out, and why",
            caption="Deployments by the rule that left them out, by memory or limits; those left.",
            figure=space.left_out(
                plan.pruned, plan.evaluated - plan.feasible, plan.feasible, "memory, limits"
            ),
        ),
    ]
