"""The pages of rules and passes: docstrings, in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Callable

from gemma_doctor.errors import UsageError

__all__ = ["page_of"]


def page_of(function: Callable[..., object]) -> str:
    """The docstring of the module that holds a function, its first line made a title.

    Raises:
        UsageError: If Python runs with ``-OO``, which removes docstrings.
    """
    text = sys.modules[function.__module__].__doc__
    if text is None:
        raise UsageError("the pages of rules and passes are docstrings, which python -OO removes: run without -OO")
    return f"# {text.strip()}\n"
