"""``gemma-doctor rule``."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

from typing import Annotated

import typer

from gemma_doctor.reports.documents import draw
from gemma_doctor.spelling import closest

__all__ = ["EPILOG", "command"]

EPILOG = """Examples:

\b
  gemma-doctor rule
  gemma-doctor rule GD104
  gemma-doctor rule fp16-conv-overflow-risk
  gemma-doctor rule rescale-conv"""


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="RULE", help="Id or name of a rule, or name of a pass; none lists all.")
    ] = None,
) -> None:
    """Explain one rule or repair pass, or list all."""
    from gemma_doctor.reports import manual

    if name is None:
        _list()
    else:
        text = _page(name)
        draw(lambda console: manual.render_page(text, console))


def _list() -> None:
    from gemma_doctor import catalog as rules
    from gemma_doctor.repair.planning import registry as passes
    from gemma_doctor.reports import manual

    found = [(item.id, item.name, item.severity, _summary(rules.page(item))) for item in rules.RULES]
    mends = [(one.name, one.exactness, one.mends, _summary(passes.page(one))) for one in passes.PASSES]
    draw(lambda console: manual.render_list(found, mends, console))


def _page(name: str) -> str:
    """The page of the rule or pass of that name."""
    from gemma_doctor import catalog as rules
    from gemma_doctor.repair.planning import registry as passes

    known = {one.name for one in passes.PASSES}
    if known.intersection(
        closest(name, [*known, *(rule.name for rule in rules.RULES)])
    ):  # or a slip of the pen: then finding it fails, and says what is close
        return passes.page(passes.find_pass(name))
    return rules.page(rules.find_rule(name))


def _summary(page: str) -> str:
    """What follows the names in the title of a page."""
    return page.partition("\n")[0].partition(": ")[2]
