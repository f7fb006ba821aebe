"""Strict reading of parsed JSON and TOML: every value knows where it stands, and says so when it is wrong."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeVar, cast

from gemma_doctor.spelling import did_you_mean

__all__ = ["Node", "parse_json"]

T = TypeVar("T")
Word = TypeVar("Word", bound=str)
_SHOWN = 60  # characters of a wrong value that a message repeats


def parse_json(text: str | bytes, error: Callable[[str], Exception]) -> Node:
    """The document that ``text`` holds, read strictly: no key twice in one object, no NaN and no Infinity.

    Args:
        text: A JSON document.
        error: Makes the exception for a message; it is raised for whatever is wrong, here and by the node.
    """
    try:
        return Node(json.loads(text, object_pairs_hook=_unique, parse_constant=_constant), "", error)
    except json.JSONDecodeError as problem:
        raise error(f"line {problem.lineno}, column {problem.colno}: {problem.msg}") from problem
    except (ValueError, RecursionError) as problem:  # bad UTF-8, numbers of 4,301 digits, thousands of brackets
        raise error(str(problem)) from problem


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return members


def _constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a parsed document.

    Attributes:
        value: The value as the parser gave it.
        place: Path inside the document, such as ``"findings[3].rule"``; empty for the document itself.
        error: Makes the exception for a message that starts with the place.
    """

    value: object
    place: str
    error: Callable[[str], Exception]

    def refuse(self, problem: str) -> NoReturn:
        """Raise the document's error for this place."""
        raise self.error(f"{self.place}: {problem}" if self.place else problem)

    def expected(self, what: str) -> NoReturn:
        """Refuse the value, for it is not ``what``."""
        self.refuse(f"expected {what}, found {self._shown()}")

    def _shown(self) -> str:
        shown = repr(self.value)
        return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."

    def table(self, known: Collection[str] | None = None) -> dict[str, Node]:
        """The members of an object or table.

        Args:
            known: The keys that it may have; None where any will do.
        """
        table = self._mapping()
        for key in table:
            if known is not None and key not in known:
                self.refuse(f"unknown key {key!r}{did_you_mean(key, known)}")
        return {key: self._child(key, item) for key, item in table.items()}

    def member(self, key: str) -> Node:
        """The member ``key`` of a table that must have it."""
        table = self._mapping()
        if key not in table:
            self.refuse(f"missing {key!r}")
        return self._child(key, table[key])

    def _mapping(self) -> Mapping[str, object]:
        if not isinstance(self.value, Mapping):
            self.expected("a table")
        return cast("Mapping[str, object]", self.value)

    def _child(self, key: str, value: object) -> Node:
        return Node(value, f"{self.place}.{key}" if self.place else key, self.error)

    def items(self) -> list[Node]:
        """The members of a list."""
        if not isinstance(self.value, list):
            self.expected("a list")
        return [Node(item, f"{self.place}[{index}]", self.error) for index, item in enumerate(self.value)]

    def text(self) -> str:
        """The value as a string."""
        if not isinstance(self.value, str):
            self.expected("a string")
        return self.value

    def boolean(self) -> bool:
        """The value as true or false."""
        if not isinstance(self.value, bool):
            self.expected("true or false")
        return self.value

    def count(self) -> int:
        """The value as an integer of at least 0."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < 0:
            self.expected("an integer of at least 0")
        return self.value

    def number(self) -> int | float:
        """The value as a finite number; integers stay integers."""
        if isinstance(self.value, int) and not isinstance(self.value, bool):
            return self.value
        if not isinstance(self.value, float) or not math.isfinite(self.value):
            self.expected("a finite number")
        return self.value

    def magnitude(self) -> float:
        """The value as a number of at least 0 that float64 can hold."""
        number = self.number()
        if not 0 <= number <= sys.float_info.max:
            self.expected("a number of at least 0 that float64 can hold")
        return float(number)

    def choice(self, options: Collection[Word]) -> Word:
        """The value as one of ``options``."""
        found = next((option for option in options if option == self.value), None)
        if found is None:
            self.refuse(f"{self._shown()} is not known{did_you_mean(str(self.value)[:_SHOWN], options)}")
        return found

    def maybe(self, read: Callable[[Node], T]) -> T | None:
        """What ``read`` makes of it; None for null."""
        return None if self.value is None else read(self)
