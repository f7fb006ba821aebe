"""What the model card of a mended checkpoint says of the repair, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gemma_doctor.plans import Edit, Plan
from gemma_doctor.records import Exactness
from gemma_doctor.reports.edits import EXACTNESS, subject
from gemma_doctor.reports.markdown import left_lines, names
from gemma_doctor.reports.markdown_text import code, prose
from gemma_doctor.reports.wording import counted, listed

__all__ = ["HEADING", "card_section"]

HEADING = "## Repaired by gemma-doctor"
_REASON = 300  # characters of a pass's first reason
_WORST_LAST = tuple(EXACTNESS)


def card_section(plan: Plan) -> str:
    """The section: from what and how exactly, each pass with its first reason, and what is left.

    Args:
        plan: The plan that was carried out.
    """
    groups: dict[tuple[str, Exactness], list[Edit]] = {}
    for edit in plan.edits:
        groups.setdefault((edit.pass_name, edit.exactness), []).append(edit)
    return "\n".join((HEADING, "", *_head(plan), "", *_passes(groups), "", *_left(plan))) + "\n"


def _head(plan: Plan) -> Iterator[str]:
    worst = max((edit.exactness for edit in plan.edits), key=_WORST_LAST.index)
    yield (
        f"gemma-doctor {prose(plan.version)} made this copy of {code(plan.source)} with "
        f"{counted(len(plan.edits), 'edit')}; the least exact is **{worst}** ({EXACTNESS[worst]})."
    )
    yield (
        "Every byte was read back and compared with the source and the plan. `gemma-doctor.json` holds each edit with "
        "its reason and its numbers, and the hash of each file."
    )


def _passes(groups: dict[tuple[str, Exactness], list[Edit]]) -> Iterator[str]:
    """A line for each pass: what it changed, how exactly, for which rules, and why the first."""
    for (name, exactness), edits in groups.items():
        yield (
            f"- **{prose(name)}** ({exactness}: {EXACTNESS[exactness]}), {counted(len(edits), 'edit')} for "
            f"{prose(_rules(edits))}: {names(map(subject, edits))}. {prose(edits[0].reason.message, _REASON)}"
        )


def _rules(edits: Sequence[Edit]) -> str:
    return listed(sorted({edit.reason.rule for edit in edits}))


def _left(plan: Plan) -> Iterator[str]:
    lines = list(left_lines(plan.left))
    yield from (f"- {line}" for line in lines)
    if not lines:
        yield "Nothing that the scan found is left."
