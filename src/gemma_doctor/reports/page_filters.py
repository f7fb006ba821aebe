"""How the page's templates write names, numbers and Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

from gemma_doctor.reports import layers, reach
from gemma_doctor.reports.edits import EXACTNESS
from gemma_doctor.reports.names import clipped, elide, safe_text
from gemma_doctor.reports.wording import counted, parameters, proved, size

__all__ = ["FILTERS", "visible"]

_LEAST, _MOST = 1e-3, 1e6  # between them a number is written without an exponent


def visible(value: Any) -> Any:  # noqa: ANN401  # whatever a template prints
    """A string with everything that is invisible, or acts upon its surroundings, as an escape; cut if endless."""
    return clipped(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _name(name: str) -> Markup:
    """A name that may be broken after each of its dots; of a very long one, the ends."""
    return Markup("<wbr>").join(map(escape, re.split(r"(?<=\.)", _short(name))))


def _short(name: str) -> str:
    """The same as plain text."""
    return elide(safe_text(name)) if name.strip() else "(no name)"


def _number(value: float | None, digits: int = 4) -> str:
    """A number to so many digits, or to the unit if it has more; a dash for none."""
    if value is None:
        return "\N{EN DASH}"
    if not value or _LEAST <= abs(value) < _MOST:
        decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0
        text = f"{value:,.{decimals}f}"
        return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "\N{MINUS SIGN}")
    return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _percent(share: float | None) -> str:
    """A share of one in percent, never rounded to none or to all."""
    if share is None:
        return "\N{EN DASH}"
    if 0 < share < 0.0001:  # noqa: PLR2004  # what two decimals can say
        return "under 0.01 %"
    if 0.9999 < share < 1:  # noqa: PLR2004
        return "over 99.99 %"
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"


def _markdown(text: str) -> Markup:
    """A page of this program as HTML, without its title and below the headings around it."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text.partition("\n")[2])
    for token in tokens:
        token.attrs.pop("style", None)  # the page's policy allows no style in attributes
        if token.type in {"heading_open", "heading_close"}:
            token.tag = "h4"
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # noqa: S704  # raw HTML is off: it is escaped


def _level(cell: layers.Cell) -> str:
    """The class of a cell's colour."""
    return "broken" if cell.nonfinite else "zero" if cell.level is None else f"level{cell.level}"


def _permille(share: float) -> str:
    """A share as a length on a drawing that is 1000 wide."""
    return f"{1000 * share:.2f}"


def _shape(shape: tuple[int, ...]) -> str:
    return " \N{MULTIPLICATION SIGN} ".join(map(str, shape)) or "scalar"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "along": reach.along,
    "counted": counted,
    "proved": proved,
    "level": _level,
    "markdown": _markdown,
    "meaning": EXACTNESS.__getitem__,
    "name": _name,
    "number": _number,
    "parameters": parameters,
    "percent": _percent,
    "permille": _permille,
    "shape": _shape,
    "shares": reach.shares,
    "short": _short,
    "size": size,
}
"""The filters, by the names that templates use."""
