"""All rules, those of a scan and those of a verification, and how a user names some of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from gemma_doctor.checkpoint.quoting import quoted
from gemma_doctor.errors import UsageError
from gemma_doctor.inspect import registry as scanning
from gemma_doctor.pages import page_of
from gemma_doctor.rule import Rule
from gemma_doctor.spelling import closest
from gemma_doctor.verify import registry as verifying

__all__ = ["RULES", "AnyRule", "find_rule", "page", "select"]

AnyRule: TypeAlias = Rule[Any]

RULES: tuple[AnyRule, ...] = tuple(sorted((*scanning.RULES, *verifying.RULES), key=lambda rule: rule.id))
"""Every rule, by id."""

_ALL = "ALL"  # as in ruff: the prefix of every rule


def find_rule(id_or_name: str) -> AnyRule:
    """The rule of that id (any case) or name.

    Raises:
        UsageError: If there is none; the message proposes the closest one.
    """
    for rule in RULES:
        if id_or_name.upper() == rule.id or id_or_name.lower() == rule.name:
            return rule
    known = [word for rule in RULES for word in (rule.id, rule.name)]
    raise UsageError(f"no rule {quoted(id_or_name)}{_question(closest(id_or_name, known, 3))}")


def select(chosen: Sequence[str] = (), ignored: Sequence[str] = ()) -> tuple[AnyRule, ...]:
    """The rules that are switched on, in order.

    As in ruff, each rule obeys the longest prefix that matches it: ``select(["GD1"], ["GD10"])`` is empty but for
    what a longer prefix selects, and ``select(["GD101"], ["GD1"])`` is GD101. Ignoring wins a tie.

    Args:
        chosen: Ids or prefixes of ids, in any case; ``"ALL"`` is every rule, and so is an empty list.
        ignored: The same, switched off.

    Raises:
        UsageError: If a prefix matches no rule; the message proposes the closest ones.
    """
    on, off = _prefixes(chosen or [_ALL]), _prefixes(ignored)
    return tuple(rule for rule in RULES if _longest(on, rule) > _longest(off, rule))


def page(rule: AnyRule) -> str:
    """The rule's page in Markdown: the docstring of its module, its first line made a title.

    Raises:
        UsageError: If Python runs with ``-OO``, which removes docstrings.
    """
    return page_of(rule.check)


def _prefixes(words: Sequence[str]) -> list[str]:
    """The selectors as prefixes of ids; the empty prefix for ALL."""
    prefixes = ["" if word.upper() == _ALL else word.upper() for word in words]
    for word, prefix in zip(words, prefixes, strict=True):
        if not word or not any(rule.id.startswith(prefix) for rule in RULES):
            known = [*(rule.id for rule in RULES), *sorted({rule.id[:3] for rule in RULES}), _ALL]
            names = {rule.name: rule.id for rule in RULES}
            meant = [names[name] for name in closest(word, names)] or closest(word, known, 3)
            raise UsageError(f"no rule has the id or prefix {quoted(word)}{_question(meant)}")
    return prefixes


def _longest(prefixes: Iterable[str], rule: AnyRule) -> int:
    """Length of the longest prefix that matches the rule; -1 where none does."""
    return max((len(prefix) for prefix in prefixes if rule.id.startswith(prefix)), default=-1)


def _question(close: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(close)}?" if close else "; `gemma-doctor rule` lists all rules"
