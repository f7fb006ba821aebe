"""The least that any trace below autograd costs: torch calls it for each operation, and it does nothing."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Empty"]


class Empty(TorchDispatchMode):  # type: ignore[misc]  # torch is not seen by the type checker
    """Does nothing but count."""

    calls = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.calls += 1
        return func(*args, **(kwargs or {}))
