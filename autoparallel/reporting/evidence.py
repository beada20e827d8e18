"""What a training page says of its own numbers: measured trials, where constants come from."""

from __future__ import annotations

from autoparallel.counts import counted
from autoparallel.profiles import Calibration
from autoparallel.reporting import origins
from autoparallel.reporting.figures import trust
from autoparallel.reporting.page import Drawing, Item, Prose, Section, Table
from autoparallel.reporting.run import TrainingRun
from autoparallel.reporting.wording import time_scale
from autoparallel.units import GIB


def measured_section(run: TrainingRun) -> Section:
    """Predicted against measured."""
    entries = [(f"#{e.rank}", e) for e in run.plan.entries if e.measured is not None]
    title = "Predicted against measured"
    if not entries:
        text = "No layout of this plan was measured: autoparallel profile runs short trials of it."
        return Section(name="measured", title=title, items=[Prose(text=text)])
    scale, unit, digits = time_scale(entries[0][1].iteration_s or 0.0)
    rows = []
    for label, e in entries:
        m = e.measured
        assert m is not None
        time, peak = m.iteration_s, m.peak_memory_bytes
        rows.append(
            [
                label,
                str(e.layout),
                m.outcome,
                f"{m.mode}, {m.impl} on {m.device}",
                f"{(e.iteration_s or 0) * scale:.{digits}f}",
                f"{time * scale:.{digits}f}" if time is not None else "-",
                f"{(e.iteration_s or 0) / time - 1:+.1%}" if time else "-",
                f"{(e.memory_bytes or 0) / GIB:.1f}",
                f"{peak / GIB:.1f}" if peak is not None else "-",
            ]
        )
    head = ["rank", "layout", "outcome", "how", f"predicted {unit}", f"measured {unit}", "error"]
    items: list[Item] = [
        Drawing(
            name="measured-figure",
            title="Predicted and measured step time",
            caption="A trial that is not of the real job (a proxy, one rank) is not comparable.",
            figure=trust.predicted_and_measured(entries),
        ),
        Table(
            caption="Trials of the short list",
            head=[*head, "predicted GiB", "measured GiB"],
            rows=rows,
            words=frozenset({0, 1, 2, 3}),
        ),
    ]
    return Section(name="measured", title=title, items=items)


def rests_on(found: Calibration) -> str:
    """Where the constants of a calibration come from, in one sentence."""
    if found.state == "measured":
        text = f"Constants are fitted to {counted(found.rows, 'measured run')} of {found.family}"
    elif found.borrowed_from:
        text = f"Constants for {found.family} are borrowed from {found.lender}"
        text += f" ({counted(found.rows, 'run')})"
    else:
        text = f"Constants for {found.family} are assumed"
    return text + (f" ({found.source})." if found.source else ".")


def origin_section(run: TrainingRun) -> Section:
    """Shares measured, published and assumed; every constant; every catalog number."""
    found, entries = origins.constants(run), [(f"#{e.rank}", e) for e in run.plan.entries[:5]]
    known = origins.catalog_values(run)
    items: list[Item] = [Prose(text=rests_on(run.where.calibration))]
    if not run.is_current:
        text = (
            "The profiles or the catalog have changed since this plan was made: the short list is "
            "the plan's own, what is predicted again (breakdowns of others, scale, sensitivity) "
            "is of today."
        )
        items.append(Prose(text=text, kind="warning"))
    items += [
        Drawing(
            name="origin-figure",
            title="What the predicted step rests on",
            caption="Shares of the step by the state of the constants behind each part.",
            figure=trust.origins(entries),
        ),
        Drawing(
            name="constants-figure",
            title="The calibrated constants",
            caption=(
                "Each between its physical bounds, with the 5-95 % range that runs and prior leave."
            ),
            figure=trust.constants(found),
        ),
        Table(
            caption=f"All {len(found)} constants",
            head=["constant", "value", "5 %", "95 %", "state", "meaning"],
            rows=[
                [
                    c.name,
                    f"{c.value:.4g}",
                    f"{c.low:.4g}" if c.low is not None else "-",
                    f"{c.high:.4g}" if c.high is not None else "-",
                    c.state,
                    c.meaning,
                ]
                for c in found
            ],
            words=frozenset({0, 4, 5}),
            folded=True,
        ),
        Table(
            caption=f"All {len(known)} numbers of the catalog",
            head=["entry", "field", "value", "source"],
            rows=[[k.entry, k.field, k.value, k.source] for k in known],
            words=frozenset({0, 1, 3}),
            folded=True,
        ),
    ]
    return Section(name="origins", title="Where the numbers come from", items=items)
