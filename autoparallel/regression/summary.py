"""What a check says to machines and reviewers: JUnit XML and Markdown.

Both take verdicts, and errors of locks that could not be checked, as `path -> message`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from xml.etree import ElementTree

from autoparallel.regression.check import Finding, Verdict

COMMENT_LIMIT = 60_000
"""GitHub refuses comments over 65,536 characters."""
MARKER = "<!-- autoparallel regress -->"
"""First line of the Markdown, by which a pipeline finds its own comment again."""
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(verdicts: Sequence[Verdict], errors: Mapping[str, str]) -> str:
    """A JUnit report: a suite a lock, a case a rule."""
    root = ElementTree.Element("testsuites", name="autoparallel regress")
    for verdict in verdicts:
        failed = sum(finding.failed for finding in verdict.findings)
        suite = _suite(root, verdict.path, len(verdict.findings), failures=failed)
        for finding in verdict.findings:
            case = _case(suite, verdict.path, finding.rule)
            if finding.failed:
                failure = ElementTree.SubElement(case, "failure", message=_xml(finding.message))
                failure.text = _xml("\n".join(_reasons(verdict, finding)))
            else:
                ElementTree.SubElement(case, "system-out").text = _xml(finding.message)
    for path, message in errors.items():
        case = _case(_suite(root, path, 1, errors=1), path, "read")
        ElementTree.SubElement(case, "error", message=_xml(message))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _suite(
    root: ElementTree.Element, name: str, tests: int, failures: int = 0, errors: int = 0
) -> ElementTree.Element:
    counts = {"name": _xml(name), "tests": str(tests), "failures": str(failures)}
    return ElementTree.SubElement(root, "testsuite", counts | {"errors": str(errors)})


def _case(suite: ElementTree.Element, path: str, rule: str) -> ElementTree.Element:
    about = {"classname": _xml(path), "name": _xml(rule), "file": _xml(path)}
    return ElementTree.SubElement(suite, "testcase", about)


def _xml(text: str) -> str:
    """Text without the characters that XML cannot hold; the rest is escaped on writing."""
    return _NOT_XML.sub("?", text)


def _reasons(verdict: Verdict, finding: Finding) -> list[str]:
    lines = [verdict.title, f"pinned: {verdict.pinned}", finding.message]
    return lines + [f"because {cause.message}" for cause in verdict.causes]


# --- Markdown ---------------------------------------------------------------------------


def markdown(verdicts: Sequence[Verdict], errors: Mapping[str, str]) -> str:
    """A summary for a pull-request comment: a table, then the reasons of what failed."""
    bad = sum(not v.passed for v in verdicts)
    lines = [MARKER, "### Pinned parallel layouts", "", _headline(len(verdicts), bad, len(errors))]
    if verdicts:
        lines += [
            "",
            "| lock | result | asked | step | memory | optimum |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_row(v) for v in verdicts]
    for path, message in errors.items():
        lines += ["", f"**{_md(path)}** could not be checked: {_md(message)}"]
    for verdict in verdicts:
        if not verdict.passed or verdict.causes:
            lines += _details(verdict)
    text = "\n".join(lines) + "\n"
    return text if len(text) <= COMMENT_LIMIT else text[:COMMENT_LIMIT] + "\n\n(cut short)\n"


def _headline(checked: int, bad: int, errors: int) -> str:
    told = f"{checked - bad} of {checked} hold" if checked else "none was checked"
    return (
        told + (f", {bad} regressed" if bad else "") + (f", {errors} unreadable" if errors else "")
    )


def _row(verdict: Verdict) -> str:
    found = {finding.rule: finding for finding in verdict.findings}
    cells = [
        _md(verdict.path),
        "holds" if verdict.passed else "**regressed**",
        _md(verdict.title),
        _change(found.get("iteration_s") or found.get("tpot_ms")),
        _change(found.get("memory_bytes")),
        _optimum(verdict, found.get("optimum")),
    ]
    return f"| {' | '.join(cells)} |"


def _change(finding: Finding | None) -> str:
    if finding is None:
        return "-"
    text = _md(finding.message.split(",")[0])
    return f"**{text}**" if finding.failed else text


def _optimum(verdict: Verdict, finding: Finding | None) -> str:
    if finding is None or not verdict.best:
        return "-"
    if verdict.best == verdict.pinned:
        return "unchanged"
    return "**moved**" if finding.failed else "tied"


def _details(verdict: Verdict) -> list[str]:
    failed = [finding for finding in verdict.findings if finding.failed]
    told = "why it failed" if failed else "what changed"
    lines = [
        "",
        f"<details{' open' if failed else ''}><summary>{_md(verdict.path)}: {told}</summary>",
        "",
    ]
    lines += [f"Pinned: {_code(verdict.pinned)}"]
    if verdict.best not in ("", verdict.pinned):
        lines += [f"Today's best: {_code(verdict.best)}"]
    lines += ["", *(f"- **{_md(f.rule)}**: {_md(f.message)}" for f in failed)]
    lines += [f"- because {_md(cause.message)}" for cause in verdict.causes]
    if verdict.note:
        lines += ["", *(f"> {_md(line)}" for line in verdict.note.splitlines())]
    return [*lines, "", "</details>"]


def _code(text: str) -> str:
    return "`" + "".join(c for c in _one_line(text) if c != "`") + "`"


_MARKED = re.compile(r"([\\`*_\[\]#|~])")


def _md(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no mention of anybody."""
    return _MARKED.sub(r"\\\1", _html(text))


def _html(text: str) -> str:
    """One line of text without markup and mentions, for inside an HTML tag."""
    plain = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return plain.replace("@", "@\u200b")


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def plain_lines(verdict: Verdict) -> Iterable[str]:
    """The verdict as lines for a log: what failed first; of one that holds only what changed."""
    for finding in sorted(verdict.findings, key=lambda finding: not finding.failed):
        if not verdict.passed or finding.noticed:
            yield f"{'FAILED' if finding.failed else 'holds '} {finding.rule}: {finding.message}"
    for cause in verdict.causes:
        yield f"because {cause.message}"
