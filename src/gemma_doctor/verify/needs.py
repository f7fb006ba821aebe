"""What verify needs besides this package, and what to do where it does not work; no torch is loaded here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

__all__ = ["first_line", "why_broken"]

_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of builds without CUDA; the Python Package Index has torchvision for CUDA only (Linux)."""


def why_broken(error: BaseException) -> str:
    """Why a package that is installed cannot be imported, and what to do.

    Args:
        error: What the import raised; transformers hides the cause behind an error of its own.
    """
    causes = list(_chain(error))
    why = first_line(causes[-1])
    if not any("torchvision" in str(one) for one in causes):
        return why
    return (
        f"torchvision {_version('torchvision')} does not work with torch {_version('torch')} ({why}). The two are "
        "built for each other: install both again from one index, pip install --force-reinstall torch torchvision, "
        f"and on a machine without a GPU with --index-url {_CPU_INDEX} behind it"
    )


def first_line(error: BaseException) -> str:
    """What an error says first, without the full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(of an unknown version)"
