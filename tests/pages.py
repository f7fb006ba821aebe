"""HTML reports to look at: a sick one, a plan, and a parser that sees what a browser would."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from typing import Any

from sample_reports import PUBLISHED, finding, report

from gemma_doctor.plans import Drop, Fingerprint, Left, Plan, Reason, Scale
from gemma_doctor.records import Suppressed

SICK = replace(
    report([finding(), finding("GD104", "warning", PUBLISHED[0].info.name, "Outputs can pass 256.")], PUBLISHED),
    suppressed=(Suppressed(finding("GD101", tensor="set.aside"), "allow", "known since May", "some.toml"),),
    remarks=("The baseline has an entry without a finding.",),
)
PLAN = Plan(
    "1.2.3",
    "some model/",
    Fingerprint((), {}),
    (
        Scale(
            pass_name="rescale-conv", exactness="eps", reason=Reason("GD104", "too large"), tensor="a.w", exponent=-3
        ),
        Drop(pass_name="prune-shared-kv", exactness="exact", reason=Reason("GD201", "dead"), tensor="layers.1.k"),
        Drop(pass_name="prune-shared-kv", exactness="exact", reason=Reason("GD201", "dead"), tensor="layers.2.k"),
    ),
    (Left("GD102", "error", "b.w", "only a lossy pass mends it"),),
)


VOID = {"meta", "input", "wbr", "br", "path", "rect"}
APART = {"dt", "dd", "th", "td", "p", "li", "h1", "h2", "h3", "h4", "summary", "small"}


@dataclass
class Parsed(HTMLParser):
    """A document as a browser's parser sees it."""

    tags: Counter[str] = field(default_factory=Counter)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    raw: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count it."""
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(f"{tag}#{dict(attrs).get('id')}" if tag == "script" else tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """The same for an element that SVG closes at once."""
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        """Elements close in turn."""
        assert self.open.pop().partition("#")[0] == tag, f"</{tag}> closes another element"
        if tag in APART:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        """Keep scripts and style sheets apart from what is read."""
        if self.open and self.open[-1].startswith(("script", "style")):
            self.raw[self.open[-1]] = self.raw.get(self.open[-1], "") + data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        """What is to be read, its whitespace folded."""
        return " ".join("".join(self.words).split())

    @property
    def data(self) -> Any:  # noqa: ANN401  # JSON
        """What the script draws."""
        return json.loads(self.raw["script#data"])


def parsed(document: str) -> Parsed:
    """The document, every element of which must be closed."""
    page = Parsed()
    page.feed(document)
    page.close()
    assert page.open == []
    return page
