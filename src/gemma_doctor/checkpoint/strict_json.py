r"""JSON as serde_json 1.0.150 reads it: the JSON of safetensors 0.8.0.

The standard library's decoder does the work. Where the two disagree, serde_json is right here:

- ``NaN`` and ``Infinity`` are not JSON.
- A number beyond float64's range is an error, not inf and not a long integer; ``-0`` is a float.
- A lone surrogate (``\ud800``) is an error.
- More than 127 arrays and objects inside each other are an error.
- A repeated key is no error of the JSON itself: objects are tuples of pairs, and who reads them decides.

One difference is left, and it is out of reach of files: a caller who has used up all but 127 frames of Python's
recursion limit gets a refusal for nesting that serde_json would still accept.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import NoReturn, TypeAlias

__all__ = ["MAX_DEPTH", "U64_MAX", "BadJSONError", "Members", "deeper_than", "lone_surrogate", "members"]

MAX_DEPTH = 127
"""Most arrays and objects inside each other (serde_json's recursion limit, 128, is the first that fails)."""

U64_MAX = 2**64 - 1
_U64_DIGITS = len(str(U64_MAX))
_POW10_MAX = 308
_LONG_POWER = 11
"""Digits of an exponent that decide: no number of digits before it makes up for 10**10."""

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_CONTAINERS = (dict, list, tuple)

Members: TypeAlias = tuple[tuple[str, object], ...]
"""An object's members in the order of the text, repeated keys included."""

_OPEN = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*(\}[ \t\n\r]*)?")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*([,}])[ \t\n\r]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")


class BadJSONError(ValueError):
    """The text is not JSON, or not such JSON as serde_json accepts."""


def members(raw: bytes) -> Iterator[tuple[str, object]]:
    """The members of the one object that ``raw`` must be, one after the other.

    Only the member at hand is held as Python objects. Objects inside are :data:`Members`, arrays are lists.
    Nesting is bounded by Python's recursion limit only: check what you keep with :func:`deeper_than`.

    Raises:
        BadJSONError: If the text is no JSON object. Members before the fault have been yielded by then.
    """
    try:
        yield from _members(_text(raw), _decoder(raw))
    except json.JSONDecodeError as error:
        raise BadJSONError(f"{error.msg.removesuffix(' at')} at character {error.pos}") from None
    except RecursionError:
        raise BadJSONError(f"nested deeper than {MAX_DEPTH} levels") from None


def _text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadJSONError(f"byte {error.start} is not UTF-8") from None
    at = lone_surrogate(text)
    if at is not None:
        raise BadJSONError(f"lone surrogate escape at character {at}")
    return text


def _decoder(raw: bytes) -> json.JSONDecoder:
    """The quick decoder where no integer can need another treatment than ``int``, else the exact one."""
    long_integer = b"0" * _U64_DIGITS in raw.translate(_DIGITS_TO_ZERO)
    return _EXACT if long_integer or b"-0" in raw else _QUICK


def lone_surrogate(text: str) -> int | None:
    r"""Where the first ``\uD8xx`` to ``\uDFxx`` stands that has no other half; None where there is none."""
    if not _SURROGATE.search(text):
        return None
    # Blanks of the same length keep every position, and an escaped backslash from looking like an escape's start.
    plain = text.replace(r"\\", "  ")
    lone = _SURROGATE.search(_SURROGATE_PAIR.sub(" " * 12, plain))
    return lone.start() if lone else None


def _members(text: str, decoder: json.JSONDecoder) -> Iterator[tuple[str, object]]:
    decode_at, colon, following = decoder.raw_decode, _COLON.match, _NEXT.match
    opening = _OPEN.match(text)
    if not opening:
        raise json.JSONDecodeError("Expecting an object", text, 0)
    at, more = opening.end(), not opening[1]
    while more:
        if not text.startswith('"', at):
            raise json.JSONDecodeError("Expecting a name in double quotes", text, at)
        name, at = decode_at(text, at)
        delimiter = colon(text, at)
        if not delimiter:
            raise json.JSONDecodeError("Expecting ':' delimiter", text, at)
        value, at = decode_at(text, delimiter.end())
        yield name, value
        delimiter = following(text, at)
        if not delimiter:
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at, more = delimiter.end(), delimiter[1] == ","
    if at != len(text):
        raise json.JSONDecodeError("Extra data", text, at)


def deeper_than(limit: int, value: object) -> bool:
    """Whether more than ``limit`` arrays and objects lie inside each other in ``value``.

    Level by level, so that no nesting exhausts the stack.

    Args:
        limit: Levels allowed; 0 allows no array and no object.
        value: A decoded value: scalars, lists, :data:`Members` or dicts.
    """
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(limit):
        if not level:
            return False
        level = [child for parent in level for child in _children(parent) if isinstance(child, _CONTAINERS)]
    return bool(level)


def _children(container: object) -> Iterable[object]:
    if isinstance(container, dict):
        return container.values()
    if isinstance(container, tuple):
        return [value for _, value in container]
    return container if isinstance(container, list) else ()


def _refuse_constant(literal: str) -> NoReturn:
    raise BadJSONError(f"{literal} is not JSON")


def _integer(literal: str) -> int | float:
    """An int where serde_json sees a u64 or i64, else a float: -0, and what is beyond 64 bits."""
    if len(literal) < _U64_DIGITS and literal != "-0":
        return int(literal)
    if len(literal) == _U64_DIGITS and int(literal) <= U64_MAX:
        return int(literal)
    return _float(literal)


def _float(literal: str) -> float:
    """A float of no particular value, for no header has one but in fields that are ignored; its range counts.

    serde_json (``parse_integer`` to ``f64_from_parts`` in its ``de.rs``) multiplies the digits that fit 64 bits by a
    power of ten, in float64. At the edge of the range, 1.797...e308, that are the first 20.

    Raises:
        BadJSONError: If it is beyond float64's range.
    """
    mantissa, _, power = literal.lower().lstrip("-").partition("e")
    whole, _, fraction = mantissa.partition(".")
    significant = (whole + fraction).lstrip("0")
    digits = significant[:_U64_DIGITS]
    shift = int(power.lstrip("+-0")[:_LONG_POWER] or "0")
    exponent = len(significant) - len(digits) - len(fraction) + (-shift if power.startswith("-") else shift)
    if digits and (exponent > _POW10_MAX or (exponent > 0 and math.isinf(float(digits) * float(f"1e{exponent}")))):
        raise BadJSONError("a number is beyond float64's range")
    return 0.0


_QUICK = json.JSONDecoder(object_pairs_hook=tuple, parse_float=_float, parse_constant=_refuse_constant)
_EXACT = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=_integer, parse_float=_float, parse_constant=_refuse_constant
)
