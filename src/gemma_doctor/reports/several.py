"""Reports on several sources together: a table for people, and documents made of those of each source."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from gemma_doctor.records import Report
from gemma_doctor.reports.names import clipped
from gemma_doctor.reports.sheet import Sheet
from gemma_doctor.reports.wording import counted, size, state

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["JOINERS", "Row", "render_summary"]

_HEADER = ("source", "verdict", "errors", "warnings", "notes", "bytes", "seconds")


@dataclass(frozen=True, slots=True)
class Row:
    """One source in the summary.

    Attributes:
        source: SOURCE as the user gave it.
        verdict: How it is, in a word or two.
        counts: Errors, warnings and notes.
        nbytes: Bytes of the tensors that were measured.
        seconds: How long it took.
    """

    source: str
    verdict: str
    counts: tuple[int, int, int]
    nbytes: int
    seconds: float

    @classmethod
    def of(cls, source: str, report: Report) -> Row:
        """The row of a report."""
        counts = (report.count("error"), report.count("warning"), report.count("note"))
        nbytes = sum(tensor.info.nbytes for tensor in report.tensors)
        return cls(source, state(report).partition(",")[0], counts, nbytes, report.seconds)


def render_summary(rows: Sequence[Row], console: Console) -> None:
    """Print a table with a row for each source.

    Args:
        rows: The sources.
        console: Where to print.
    """
    sheet = Sheet.on(console)
    nbytes, seconds = sum(row.nbytes for row in rows), sum(row.seconds for row in rows)
    sheet.blank()
    sheet.paragraph((counted(len(rows), "source"), "bold"), f": {size(nbytes)} measured in {seconds:.3g} s")
    cells = [
        (row.source, row.verdict, *(f"{count:,}" for count in row.counts), size(row.nbytes), f"{row.seconds:.3g}")
        for row in rows
    ]
    sheet.table(_HEADER, cells)


def _json(documents: Sequence[str], _: Sequence[str]) -> str:
    """A list of reports, each as it would stand alone."""
    return f"[\n{','.join(documents)}]\n"


def _markdown(documents: Sequence[str], _: Sequence[str]) -> str:
    return "\n".join(documents)


def _sarif(documents: Sequence[str], names: Sequence[str]) -> str:
    """One log with a run for each source. GitHub tells runs of one tool apart by their automation's id (§3.14.3)."""
    logs = [json.loads(document) for document in documents]
    runs = [
        {**run, "automationDetails": {"id": f"gemma-doctor/{name}/"}}
        for log, name in zip(logs, names, strict=True)
        for run in log["runs"]
    ]
    return json.dumps({**logs[0], "runs": runs}, indent=1) + "\n"


def _junit(documents: Sequence[str], names: Sequence[str]) -> str:
    """One document with a suite for each source, named after it."""
    suites = ET.Element("testsuites", {"name": "gemma-doctor"})
    for document, name in zip(documents, names, strict=True):
        for suite in ET.fromstring(document):  # noqa: S314  # written by this program a moment ago
            suite.set("name", f"gemma-doctor: {clipped(name)}")
            suites.append(suite)
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


JOINERS: Mapping[str, Callable[[Sequence[str], Sequence[str]], str]] = {
    "json": _json,
    "markdown": _markdown,
    "sarif": _sarif,
    "junit": _junit,
}
"""Kind of document -> what makes one of the documents of several sources, given them and their sources' short names."""
