"""The hot loops: statistics of a tensor's bytes at the speed of memory, and kernels for models in torch.

``guard`` and ``unguard`` are loaded when they are asked for, since they need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_doctor.kernels.guards.guarding import guard as guard
    from gemma_doctor.kernels.guards.guarding import unguard as unguard

__all__ = ["guard", "unguard"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from gemma_doctor.kernels.guards import guarding  # noqa: PLC0415  # torch takes seconds

        return getattr(guarding, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
