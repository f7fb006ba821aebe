"""Compiling by numba, without Python's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["jit"]

Loop = TypeVar("Loop", bound=Callable[..., Any])


def jit(loop: Loop) -> Loop:
    """The loop, compiled at its first call; the result is cached on disk where numba finds a folder for that."""
    try:
        return numba.njit(nogil=True, cache=True)(loop)  # type: ignore[no-any-return]
    except RuntimeError:  # it finds none: compile anew in each process
        return numba.njit(nogil=True)(loop)  # type: ignore[no-any-return]
