"""How a module's ``forward`` is replaced and put back, and the record of what was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from gemma_doctor.errors import UsageError

__all__ = ["Guard", "Replacement", "is_guarded", "plan_of", "replace", "restore", "unwrapped"]

_PLAN = "_gemma_doctor_plan"
"""Attribute of a guarded module: what its new ``forward`` needs. A plain attribute, in no state dict."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """One module whose ``forward`` was replaced.

    Attributes:
        name: Of the module within the model.
        what: What it computes now, such as ``"convolution with a scaled weight"``.
        exponent: Largest k of the factors 2**-k that its result is scaled by; 0 where none is needed.
    """

    name: str
    what: str
    exponent: int = 0


@dataclass(slots=True)
class Guard:
    """What was replaced in a model.

    Attributes:
        replaced: Every module, in the order of the model.
    """

    replaced: list[Replacement] = field(default_factory=list)

    def __str__(self) -> str:
        """How many modules of each kind."""
        counts = Counter(replacement.what for replacement in self.replaced)
        scaled = Counter(replacement.what for replacement in self.replaced if replacement.exponent)
        return "\n".join(
            f"{number:6,d}  {what}" + (f" ({scaled[what]:,d} of them scaled down)" if scaled[what] else "")
            for what, number in counts.items()
        )


def replace(module: nn.Module, forward: Callable[..., Any], plan: object) -> None:
    """Gives one module another ``forward``: a partial function, which is copied and pickled with its module.

    Args:
        module: The module.
        forward: A function of the module and the arguments of its ``forward``, at the top level of its file.
        plan: What :func:`plan_of` returns to it.

    Raises:
        UsageError: Something else has replaced this ``forward`` already.
    """
    if "forward" in module.__dict__:
        raise UsageError(
            f"{type(module).__name__}.forward has been replaced already, for example by accelerate's hooks: "
            "guard the model first, or load it without device_map"
        )
    module.__dict__[_PLAN] = plan
    module.__dict__["forward"] = partial(forward, module)


def is_guarded(module: nn.Module) -> bool:
    """Whether the module's ``forward`` was replaced here."""
    return _PLAN in module.__dict__


def restore(module: nn.Module) -> None:
    """Gives a module its own ``forward`` back, if it was replaced here."""
    if module.__dict__.pop(_PLAN, None) is not None:
        del module.__dict__["forward"]


def plan_of(module: nn.Module) -> Any:  # noqa: ANN401  # each forward knows its own
    """What the module's new ``forward`` needs."""
    return module.__dict__[_PLAN]


def unwrapped(module: nn.Module) -> nn.Module:
    """The layer inside a wrapper of PEFT, or the module itself."""
    inner = getattr(module, "base_layer", module)
    return inner if isinstance(inner, nn.Module) else module
