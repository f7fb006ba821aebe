"""The report as one HTML file that needs nothing else: no network, no other file, and no trust in the checkpoint.

Every string is made visible (:func:`~gemma_doctor.reports.names.safe_text`) and escaped where the template prints it.
The page's Content-Security-Policy allows the one script and the one style sheet that it holds, by their hashes, and
nothing more: no request, no form, no plug-in, no text that becomes markup.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gemma_doctor.plans import Plan
from gemma_doctor.records import Report
from gemma_doctor.reports import page_filters, reach
from gemma_doctor.reports.comparison import compare
from gemma_doctor.reports.judged import badge, blind, only_backward, without_backward
from gemma_doctor.reports.layers import stacks
from gemma_doctor.reports.order import in_model_order
from gemma_doctor.reports.page_data import payload
from gemma_doctor.reports.page_view import groups_of, passes_of, reproduction
from gemma_doctor.reports.wording import measured, state, verdict

__all__ = ["to_fragment", "to_html"]

_ASSETS = Path(__file__).with_name("page_assets")
_STYLES = ("page.css",)
_SCRIPTS = ("tools.js", "chart.js", "activations.js")
_WEIGHTS = ("filter.js", "weights.js", "table.js", "cells.js")  # for a page that shows weights
_WORST = 8  # tensors that are shown against float16's range
_ROWS = 100  # rows of a list that may be long


def to_html(  # noqa: PLR0913  # one noun, and what the caller alone knows of it, each with a default
    report: Report,
    commands: Sequence[tuple[str, str]] = (),
    before: Report | None = None,
    *,
    pages: Mapping[str, str] | None = None,
    plan: Plan | None = None,
    command: str = "",
    date: str = "",
) -> str:
    """The report as an HTML document that needs nothing else.

    Args:
        report: What to show.
        commands: What to do next: commands that can be copied, and what each is for.
        before: An earlier report of the same checkpoint, to be shown beside it.
        pages: The rules' pages in Markdown, by id; of a rule without one, only the findings are shown.
        plan: What was, or is to be, done to the checkpoint.
        command: The command that made the report; where empty, one is put together from what the report says.
        date: When it was made, in words; left out where empty.
    """
    ordered = in_model_order(report.tensors)
    layers = stacks(ordered)
    comparison = compare(before, report) if before else None
    weights = bool(report.tensors) or report.verification is None
    style, script = _joined(_STYLES), _joined((*_SCRIPTS, *_WEIGHTS) if weights else _SCRIPTS)
    tensors = {tensor.info.name: tensor.info for tensor in (before or report).tensors}
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            report=report,
            commands=commands,
            state=state(report),
            verdict=verdict(report).removeprefix(state(report)).lstrip(":., "),
            verdict_before=verdict(before) if before else "",
            groups=groups_of(report, pages or {}),
            passes=passes_of(plan, tensors) if plan else [],
            plan=plan,
            largest=max(ordered, key=lambda tensor: tensor.stats.absmax or 0.0, default=None),
            layers=layers,
            worst=reach.worst(ordered, reach.gravest(report.findings), _WORST),
            comparison=comparison,
            command=command or reproduction(report),
            date=date,
            rows=_ROWS,
            measured=measured(report),
            weights=weights,
            zones=reach.ZONES,
            style=style,
            script=script,
            policy=_policy(style, script),
            badge=badge,
            blind=blind,
            without_backward=without_backward,
            forward_only=only_backward(report),
            data=Markup(payload(report, ordered, layers, comparison)),  # noqa: S704  # JSON without <, > and &
        )
    )


def to_fragment(report: Report) -> str:
    """The report in short, as HTML for a notebook: verdict and findings, without a script.

    Args:
        report: What to show.
    """
    return (
        _environment()
        .get_template("fragment.html.j2")
        .render(
            report=report,
            state=state(report),
            verdict=verdict(report).removeprefix(state(report)).lstrip(":., "),
            groups=groups_of(report, {}),
            measured=measured(report),
        )
    )


def _policy(style: str, script: str) -> str:
    """The page's Content-Security-Policy (W3C CSP Level 3): nothing but what is hashed here."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@lru_cache(maxsize=3)
def _joined(names: tuple[str, ...]) -> Markup:
    """Files of the package as one text; they are the page's own, and hold nothing that would end their element."""
    return Markup("\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in names))  # noqa: S704  # ours


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=page_filters.visible,
    )
    environment.filters.update(page_filters.FILTERS)
    return environment
