"""The page as text: whole, escaped, of one file, and what the command says."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest

from autoparallel.cli import main
from autoparallel.errors import ConfigError, NothingFitsError
from autoparallel.plan import Corrected, Measured, load_plan
from autoparallel.reporting.baseline import given
from autoparallel.reporting.changes import your_items
from autoparallel.reporting.comparison import comparison_page
from autoparallel.reporting.evidence import measured_section
from autoparallel.reporting.page import Drawing, Page, Prose, Section, Table, html
from autoparallel.reporting.report import read_report, training_report, write_report
from autoparallel.reporting.run import training_run
from autoparallel.reporting.wording import tied

NASTY = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'


class Parsed(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


TRIAL = Measured(
    iteration_s=9.5,
    iteration_s_mad=0.01,
    peak_memory_bytes=7e10,
    mode="job",
    device="h100",
    impl="te",
    steps=20,
    outcome="ok",
    trial="t1",
    versions={},
)


def page_of(*items: object) -> Page:
    section = Section(name="one", title=NASTY, items=items)
    return Page(
        title=NASTY,
        decision=NASTY,
        asked=NASTY,
        facts=[(NASTY, NASTY)],
        sections=[section, Section(name="none", title="empty", items=[])],
        footer=NASTY,
    )


def test_every_shown_text_is_escaped():
    figure = go.Figure(go.Bar(x=[1], y=[NASTY], name=NASTY))
    items = (
        Prose(text=NASTY),
        Table(caption=NASTY, head=[NASTY], rows=[[NASTY]], folded=True),
        Drawing(name="f", title=NASTY, caption=NASTY, figure=figure),
    )
    text = html(page_of(*items))
    tags = Parsed(text).tags
    assert NASTY not in text
    assert "img" not in {tag for tag, _ in tags}
    assert [a for t, a in tags if t == "script"] == [
        {"type": "application/json", "data-for": "f"},
        {},
        {},
    ]
    assert all(name != "onerror" for _, attributes in tags for name in attributes)
    block = re.search(r'<script type="application/json" data-for="f">(.*?)</script>', text)
    assert json.loads(block[1])["data"][0]["name"] == NASTY
    assert ">empty<" not in text


def test_a_page_asks_the_network_for_nothing(report):
    text = html(report.page)
    tags = Parsed(text).tags
    outside = [a for _, a in tags for n in ("src", "href") if (a.get(n) or "").startswith("http")]
    assert outside == []
    policy = next(a["content"] for _, a in tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert all(a.get("href") in (None, "data:,") for t, a in tags if t == "link")


def test_every_figure_has_a_name_and_a_label(report):
    tags = Parsed(html(report.page)).tags
    charts = [a for t, a in tags if t == "div" and a.get("class") == "chart"]
    assert len(charts) >= 15
    assert len({a["id"] for a in charts}) == len(charts)
    assert all(a["role"] == "img" and a["aria-label"] and a["tabindex"] == "0" for a in charts)
    blocks = [a["data-for"] for _, a in tags if a.get("data-for")]
    assert blocks == [a["id"] for a in charts]


def test_an_illegal_baseline_is_named_with_its_rule(run):
    items = your_items(run, given("tp16 pp8 mbs1 sp zero1", run.request))
    assert any("Not legal" in item.text for item in items)


def test_measured_trials_are_drawn_beside_the_prediction(run):
    first = run.plan.entries[0]
    trial = replace(TRIAL, iteration_s=1.1 * first.iteration_s)
    plan = replace(run.plan, entries=(replace(first, measured=trial), *run.plan.entries[1:]))
    section = measured_section(replace(run, plan=plan))
    assert [type(item).__name__ for item in section.items] == ["Drawing", "Table"]
    assert section.items[1].rows[0][6] == "-9.1%"


def test_a_proved_plan_shows_what_trials_measured_and_corrected(run, report):
    assert "tok/s/GPU" in short_list(report).head
    corrected = Corrected(
        iteration_s=9.75,
        iteration_s_interval=(9.0, 10.0),
        memory_bytes=None,
        fits_probability=0.875,
        best_probability=0.625,
    )
    first, *rest = run.plan.entries
    entries = (replace(first, measured=TRIAL, corrected=corrected), *rest)
    proved = training_report(replace(run, plan=replace(run.plan, entries=entries)), "")
    assert "Trials measured 9.500 s." in proved.page.decision
    assert ("measured", "9.500 s") in proved.page.facts
    table = short_list(proved)
    assert {"9.500", "9.750", "0.88", "0.62"} <= set(table.rows[0])
    assert {len(row) for row in table.rows} == {len(table.head)}


def test_ties_of_a_proved_plan_are_by_what_trials_corrected(run):
    def corrected(seconds, fits=1.0):
        return Corrected(
            iteration_s=seconds,
            iteration_s_interval=(0.99 * seconds, 1.01 * seconds),
            memory_bytes=None,
            fits_probability=fits,
            best_probability=0.5,
        )

    told = [corrected(9.0), corrected(9.5), corrected(9.01), corrected(9.0, fits=0.0)]
    entries = [replace(e, corrected=c) for e, c in zip(run.plan.entries, told, strict=False)]
    alike = [
        replace(e, parts=entries[0].parts, iteration_s=entries[0].iteration_s) for e in entries
    ]
    plan = replace(run.plan, entries=(*alike, run.plan.entries[4]))
    assert tied(plan, run.where) == [True, False, True, False, False]
    untried = replace(plan, entries=tuple(replace(e, corrected=None) for e in alike))
    assert tied(untried, run.where) == [True] * 4


def short_list(report) -> Table:
    (found,) = (i for i in report.page.sections[0].items if isinstance(i, Table))
    return found


def test_a_report_replaces_a_report_and_nothing_else(report, tmp_path):
    written = write_report(report, tmp_path / "a" / "r.html")
    assert [path.name for path in written] == ["r.html", "r.trace.json"]
    first = written[0].read_bytes()
    write_report(report, tmp_path / "a" / "r.html")
    assert written[0].read_bytes() == first
    other = tmp_path / "notes.html"
    other.write_text("mine")
    with pytest.raises(ConfigError, match="no report"):
        write_report(report, other)
    assert other.read_text() == "mine"


def test_several_runs_are_compared(run_folder, other_folder):
    other = other_folder
    report = read_report([run_folder, other])
    assert len(report.page.drawings) >= 8
    assert "job (2)" in report.page.decision + report.page.footer
    with pytest.raises(ConfigError, match="named twice"):
        read_report([run_folder, run_folder])
    with pytest.raises(ConfigError, match="--baseline"):
        read_report([run_folder, other], "tp8 pp8 mbs1")


def test_runs_whose_ranges_overlap_are_not_told_apart(run):
    def at(name, factor):
        seconds = run.winner.iteration_s * factor
        ends = (0.9 * seconds, 1.1 * seconds)
        first = replace(
            run.winner,
            iteration_s=seconds,
            iteration_s_interval=ends,
            parts={part: value * factor for part, value in run.winner.parts.items()},
            days=run.winner.days * factor,
            tokens_per_s_per_gpu=run.winner.tokens_per_s_per_gpu / factor,
        )
        return replace(run, name=name, plan=replace(run.plan, entries=(first,)))

    runs = [at("slow", 2.0), at("fast", 1.0), at("near", 1.2)]
    text = comparison_page(runs).decision
    assert text.startswith("fast gets most out of a GPU: ")
    assert "a range that overlaps with that of near; fast is soonest" in text
    assert "overlaps" not in comparison_page(runs[:2]).decision


def test_an_empty_plan_has_no_report(run):
    with pytest.raises(NothingFitsError):
        training_run(replace(run.plan, entries=()))


def test_the_command_writes_beside_the_plan(tmp_path, capsys):
    def call(*argv: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in argv])
        return stop.value.code, capsys.readouterr().out

    assert call("report", tmp_path / "nothing")[0] == 2
    folder = tmp_path / os.fsdecode(b"not UTF-8: \xfc")
    tiny = ("--model", "gpt-tiny", "--gpus", "2", "--cluster", "local-cpu")
    code, out = call("search", *tiny, "--out", folder, "--report")
    assert code == 0
    assert "report.html" in out
    first = (folder / "report.html").read_bytes()
    code, out = call("report", folder, "--quiet", "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["decision"].startswith("Take tp")
    assert len(answer["figures"]) >= 10
    assert (folder / "report.html").read_bytes() == first
    assert call("search", *tiny, "--json", "--report")[0] == 2


def test_figures_of_a_plan_in_a_notebook(run_folder):
    figures = load_plan(run_folder).figures
    drawn = [figures.breakdown("tp8 pp8 mbs1 sp zero1"), figures.memory(), figures.short_list()]
    drawn += [figures.pareto(), figures.heat_map(), figures.timeline(2), figures.stages()]
    drawn += [figures.parallel_coordinates()]
    assert all(isinstance(figure, go.Figure) and figure.data for figure in drawn)
    assert figures.candidates.size > 10
