"""`autoparallel infer`: the ranked serving plan for a model on a cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from autoparallel.cli import common, screen
from autoparallel.cli import infer_flags as flag
from autoparallel.counts import counted
from autoparallel.errors import ConfigError, NothingFitsError

if TYPE_CHECKING:
    from autoparallel.request import ServingRequest
    from autoparallel.serving_planning import Solved


def infer_verb(
    overrides: common.OverridesArgument = None,
    model: common.ModelFlag = None,
    gpus: flag.GpusFlag = None,
    cluster: common.ClusterFlag = None,
    gpu: common.GpuFlag = None,
    prefill_cluster: flag.PrefillClusterFlag = None,
    prefill_gpus: flag.PrefillGpusFlag = None,
    input_tokens: flag.InputTokensFlag = None,
    output_tokens: flag.OutputTokensFlag = None,
    prefix_tokens: flag.PrefixTokensFlag = None,
    accepted_tokens: flag.AcceptedTokensFlag = None,
    ttft_ms: flag.TtftMsFlag = None,
    tpot_ms: flag.TpotMsFlag = None,
    e2e_ms: flag.E2eMsFlag = None,
    percentile: flag.PercentileFlag = None,
    objective: flag.ObjectiveFlag = None,
    backend: flag.BackendFlag = None,
    request_rate: flag.RequestRateFlag = None,
    concurrency: flag.ConcurrencyFlag = None,
    trace: flag.TraceFlag = None,
    precision: flag.PrecisionFlag = None,
    kv_dtype: flag.KvDtypeFlag = None,
    disaggregated: flag.DisaggregatedFlag = None,
    from_plan: flag.FromPlanFlag = None,
    allow: common.AllowFlag = None,
    top: flag.TopFlag = 10,
    json: common.JsonFlag = False,
    out: common.OutFlag = None,
    saved: common.FromFlag = None,
    config_dir: common.ConfigDirFlag = None,
    profiles_dir: common.ProfilesDirFlag = None,
    quiet: common.QuietFlag = False,
) -> None:
    """Rank the ways to serve a model within latency limits."""
    flags = {
        "model": model,
        "num_gpus": gpus,
        "cluster": cluster,
        "gpu": gpu,
        "prefill_cluster": prefill_cluster,
        "prefill_gpus": prefill_gpus,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "prefix_tokens": prefix_tokens,
        "accepted_tokens": accepted_tokens,
        "ttft_ms": ttft_ms,
        "tpot_ms": tpot_ms,
        "e2e_ms": e2e_ms,
        "percentile": percentile,
        "objective": objective,
        "backend": backend,
        "request_rate": request_rate,
        "concurrency": concurrency,
        "trace": trace,
        "precision": precision,
        "kv_dtype": kv_dtype,
        "disaggregated": disaggregated,
        "overrides": tuple(overrides or ()),
        "from_plan": from_plan,
    }
    folders: dict[str, Any] = {"config_dir": config_dir, "profiles_dir": profiles_dir}
    request = _request(flags, allow=bool(common.allowed(allow)), saved=saved, folders=folders)
    _answer(request, top=top, as_json=json, out=out, quiet=quiet)


def _request(
    flags: Mapping[str, Any], *, allow: bool, saved: Path | None, folders: dict[str, Any]
) -> ServingRequest:
    """The request that the flags make, or the one saved in a file."""
    from autoparallel.request import ServingRequest, serving_request

    given = {key: value for key, value in flags.items() if value not in (None, "", ())}
    if saved is not None:
        if given or allow:
            name = next(iter(given), "allow")
            raise ConfigError(
                f"{common.flag(name)}: given beside --from, which holds the whole request"
            )
        return common.moved(ServingRequest.from_yaml(saved), folders)
    if (run := given.pop("from_plan", None)) is not None:
        given = _of_training(run, given)
    for needed in ("model", "num_gpus"):
        if needed not in given:
            raise ConfigError(f"{common.flag(needed)}: missing, and has no default; add it")
    return serving_request(**given, allow_numerics=allow, **folders)


def _of_training(run: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The flags with the model and the cluster of a saved training plan."""
    from autoparallel.plan import load_plan
    from autoparallel.request import TrainingRequest

    for name in ("model", "cluster", "gpu"):
        if name in given:
            raise ConfigError(f"--{name}: given beside --from-plan, which has its own; leave one")
    training = TrainingRequest.from_mapping(load_plan(run).request, f"{run} request")
    return {**given, "model": training.model, "cluster": training.cluster}


def _answer(
    request: ServingRequest, *, top: int, as_json: bool, out: Path | None, quiet: bool
) -> None:
    """Search, save the run, show the plan."""
    from autoparallel.cli import run_folder
    from autoparallel.serving_planning import solve

    solved = solve(request, top=top)
    folder = out
    if out is None and not as_json:
        gpus = request.num_gpus or "auto"
        folder = run_folder.default_folder(request.model.name, "serving", gpus)
    names, unsaved = [], None
    try:
        names = _saved(folder, solved) if folder else []
        if folder and not quiet:
            run_folder.note_older(folder, names)
    except ConfigError as error:  # the answer is worth showing all the same
        unsaved = error
    if as_json:
        typer.echo(solved.plan.text(), nl=False)
        if names and not quiet:
            typer.echo(f"saved in {folder}", err=True)
    else:
        _show(solved, quiet)
        if folder and names and not quiet:
            from autoparallel.cli.plan_view import files_line

            screen.show(files_line(folder, names))
    if unsaved is not None:
        raise unsaved
    if not solved.plan.entries:
        raise NothingFitsError(_nothing(solved))


def _show(solved: Solved, quiet: bool) -> None:
    from autoparallel.cli import serving_view
    from autoparallel.serving_planning import calibration_of, tied

    plan, request = solved.plan, solved.request
    head = [] if quiet else screen.prose(serving_view.first_line(request))
    if not plan.entries:
        screen.show(head and [*head, *serving_view.sieve(plan)])
        return
    equal = tied(solved)
    labels = [f"{e.rank}{'=' * same}" for e, same in zip(plan.entries, equal, strict=True)]
    labels[0] = str(plan.entries[0].rank)
    lines = [*head, *serving_view.table(labels, plan.entries)]
    if not quiet:
        lines += serving_view.decision(plan.entries[0], sum(equal) - 1, request)
        lines += serving_view.shares(plan.entries[0])
        lines += serving_view.rests_on(calibration_of(solved), plan.entries[0])
        lines += serving_view.sieve(plan)
    screen.show(lines)


def _saved(folder: Path, solved: Solved) -> list[str]:
    """Write the files of a run; returns their names in the folder."""
    from autoparallel.cli.run_folder import names_in
    from autoparallel.cli.serving_launch import write_pareto, write_serving_files

    solved.plan.write(folder)
    solved.request.write_yaml(folder / "request.yaml")
    names = ["plan.json", "request.yaml"]
    if solved.plan.entries:
        names.append(write_pareto(folder, solved))
        written = write_serving_files(solved.request, solved.plan.entries[0], folder)
        names += names_in(folder, written)
    return names


def _nothing(solved: Solved) -> str:
    """What stands in the way, the nearest miss with its numbers, and what would meet the limits."""
    from autoparallel.reporting.serving_wording import deployment
    from autoparallel.serving_planning import miss_ms, nearest_miss, rescues, too_much

    plan, request = solved.plan, solved.request
    if not plan.evaluated:
        rule, count = next(iter(plan.pruned.items()), ("none", 0))
        from autoparallel.serving_planning import explanation

        return (
            f"plan: none of {plan.considered:,} deployments is legal; {rule!r} left out {count:,}: "
            f"{explanation(rule)}; give more GPUs or another space"
        )
    miss = nearest_miss(solved)
    if miss is None:
        lines = [f"plan: none of {counted(plan.evaluated, 'legal deployment')} fits in memory"]
    else:
        lines = [f"plan: none of {counted(plan.evaluated, 'legal deployment')} keeps the limits"]
        lines.append(f"nearest miss: {miss.backend} {miss.mode}, {deployment(miss)}")
        seen = miss_ms(solved)
        for name, value in seen.items():
            limit = getattr(request, name)
            verdict = "kept" if value <= limit else "BROKEN"
            reached = f"{value:,.1f} ms" if math.isfinite(value) else "without end"
            word = f"{name.removesuffix('_ms').upper()} {reached} of {limit:g} ms"
            lines.append(f"  {word}: {verdict}")
        limits = _reachable(request, seen)
        if limits:
            lines.append(f"would do: {limits}: this very deployment")
        if request.request_rate is not None and miss.load is not None:
            lines.append(f"  carries {miss.load:.3g} of {request.request_rate:g} requests/s")
        if beyond := too_much(request, miss):
            lines.append(beyond)
    for flags, entry in rescues(request):
        lines.append(f"would do: {flags}: {entry.backend} {entry.mode}, {deployment(entry)}")
    if not lines[-1].startswith("would do"):
        lines.append("8-bit weights and KV cache, 32 times the GPUs and a lighter load do not help")
    return "\n  ".join(lines)


def _reachable(request: ServingRequest, seen: Mapping[str, float]) -> str:
    """The broken limits at what the nearest miss reaches, as flags; empty where it never would."""
    broken = {name: value for name, value in seen.items() if value > getattr(request, name)}
    if any(math.isinf(value) for value in broken.values()):
        return ""
    return " ".join(
        f"{common.flag(name)} {math.ceil(value * 10) / 10:g}" for name, value in broken.items()
    )
