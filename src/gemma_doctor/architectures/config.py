"""Reading ``config.json``: every value checked for its type and its range before it is used.

A config is a stranger's file. A number that is too large would exhaust memory (a billion layers), one of the
wrong type would end in a traceback; here both end in one sentence that names the key and the limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from gemma_doctor.errors import IndexFileError

__all__ = ["MAX_EXTENT", "MAX_REPEATS", "Section", "config_dtype"]

MAX_EXTENT = 2**24
"""Largest extent of a tensor that a config may ask for (the widest known vocabulary has 2**18 rows)."""

MAX_REPEATS = 1024
"""Most layers, blocks or kernel positions that a config may ask for (the deepest known model has 126 layers)."""

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Section:
    """One JSON object of a config, with typed and bounded access.

    A key that is absent or null takes its default, as in transformers' config classes.

    Attributes:
        values: The object.
        path: Where it lies in the file, such as ``"text_config."``; empty at the top.
    """

    values: Mapping[str, Any]
    path: str = ""

    @classmethod
    def of(cls, config: object) -> Section:
        """A whole config; an empty one where there is none.

        Args:
            config: The parsed file, or None.

        Raises:
            IndexFileError: If it is not an object.
        """
        if config is None:
            return cls({})
        if not isinstance(config, Mapping):
            message = f"config.json: the file holds {_shown(config)}, but must hold an object."
            raise IndexFileError(message)
        return cls(config)

    def extent(self, key: str, default: int) -> int:
        """An extent of a tensor: an integer from 1 to :data:`MAX_EXTENT`."""
        return self.integer(key, default, 1, MAX_EXTENT)

    def repeats(self, key: str, default: int, least: int = 1) -> int:
        """A number of layers or kernel positions: an integer from ``least`` to :data:`MAX_REPEATS`."""
        return self.integer(key, default, least, MAX_REPEATS)

    def integer(self, key: str, default: int, least: int, most: int) -> int:
        """An integer within [least, most].

        Raises:
            IndexFileError: If the value is anything else.
        """
        return self._checked(key, self._get(key, default), least, most)

    def number(self, key: str, default: float, least: float, most: float) -> float:
        """A finite number within [least, most].

        Raises:
            IndexFileError: If the value is anything else.
        """
        return self._number(key, self._get(key, default), least, most)

    def flag(self, key: str, *, default: bool) -> bool:
        """A boolean.

        Raises:
            IndexFileError: If the value is anything else.
        """
        value = self._get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """A string; None where it is absent.

        Raises:
            IndexFileError: If the value is anything else.
        """
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            self.refuse(key, value, "a string")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings; None where it is absent.

        Raises:
            IndexFileError: If the value is anything else.
        """
        value = self.values.get(key)
        if value is None:
            return None
        items = self._list(key, value)
        if not all(isinstance(item, str) for item in items):
            self.refuse(key, value, "a list of strings")
        return tuple(items)

    def extents(self, key: str, default: int, length: int) -> tuple[int, ...]:
        """One extent for each of ``length`` layers: a list of that length, or one integer for all.

        Raises:
            IndexFileError: If the value is anything else.
        """
        value = self._get(key, default)
        if isinstance(value, (list, tuple)):
            return self.sized(key, tuple(value), length)
        return (self.extent(key, default),) * length

    def numbers(self, key: str, default: tuple[float, ...], least: float, most: float) -> tuple[float, ...]:
        """As many numbers within [least, most] as the default has: a list, or one number for all.

        Raises:
            IndexFileError: If the value is anything else.
        """
        value = self._get(key, default)
        items = list(value) if isinstance(value, (list, tuple)) else [value] * len(default)
        if len(items) != len(default):
            self.refuse(key, value, f"a list of {len(default)} numbers")
        return tuple(self._number(key, item, least, most) for item in items)

    def sized(self, key: str, default: tuple[int, ...], length: int) -> tuple[int, ...]:
        """A list of exactly ``length`` extents.

        Raises:
            IndexFileError: If the value is anything else.
        """
        items = self._list(key, self._get(key, default))
        if len(items) != length:
            self.refuse(key, items, f"a list of {length} integers")
        return tuple(self._checked(key, item, 1, MAX_EXTENT) for item in items)

    def pairs(self, key: str, default: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
        """A list of as many pairs of integers (1 to :data:`MAX_REPEATS`) as the default has.

        Raises:
            IndexFileError: If the value is anything else.
        """
        items = self._list(key, self._get(key, default))
        wanted = f"a list of {len(default)} pairs of integers"
        if len(items) != len(default):
            self.refuse(key, items, wanted)
        found = []
        for item in items:
            match item:
                case [first, second]:
                    found.append(
                        (self._checked(key, first, 1, MAX_REPEATS), self._checked(key, second, 1, MAX_REPEATS))
                    )
                case _:
                    self.refuse(key, items, wanted)
        return tuple(found)

    def child(self, key: str) -> Section:
        """The object at ``key``; an empty one where it is absent.

        Raises:
            IndexFileError: If the value is not an object.
        """
        value = self.values.get(key)
        if value is None:
            return Section({}, f"{self.path}{key}.")
        if not isinstance(value, Mapping):
            self.refuse(key, value, "an object")
        return Section(value, f"{self.path}{key}.")

    def refuse(self, key: str, value: object, wanted: str) -> NoReturn:
        """Say that the value at ``key`` is not what it has to be.

        Raises:
            IndexFileError: Always.
        """
        message = (
            f"config.json: {self.path}{key} is {_shown(value)}, but must be {wanted}. "
            "Correct the file, or scan the tensor files without it."
        )
        raise IndexFileError(message)

    def _get(self, key: str, default: object) -> object:
        value: object = self.values.get(key)
        return default if value is None else value

    def _checked(self, key: str, value: object, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(key, value, f"an integer from {least} to {most}")
        return value

    def _number(self, key: str, value: object, least: float, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            self.refuse(key, value, f"a number from {least:g} to {most:g}")
        return float(value)

    def _list(self, key: str, value: object) -> list[Any]:
        if not isinstance(value, (list, tuple)):
            self.refuse(key, value, "a list")
        return list(value)


def _shown(value: object) -> str:
    """The value, short enough for one line: long numbers, texts and containers by their kind and size."""
    if value is None or isinstance(value, (bool, float)):
        return "not a number" if isinstance(value, float) and math.isnan(value) else repr(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        return ascii(value) if len(value) <= _SHOWN else f"{value[:_SHOWN]!a}… ({len(value)} characters)"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)} items"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def config_dtype(*sections: Section) -> str | None:
    """The dtype that a config states, as torch names it (``"bfloat16"``).

    Newer transformers write ``dtype``, older ones ``torch_dtype``; multimodal configs may state it in the
    text section only.

    Args:
        sections: Where to look, the first one that states it wins.

    Raises:
        IndexFileError: If the value is not a string.
    """
    for section in sections:
        stated = section.text("dtype") or section.text("torch_dtype")
        if stated:
            return stated.removeprefix("torch.")
    return None
