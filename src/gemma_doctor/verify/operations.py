"""What an operation does to its tensors: what it writes, what it only shows again, what it leaves uninitialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Operation", "address", "operation", "tensors_in"]

address: Callable[[Tensor], int] = torch._C._data_address  # noqa: SLF001  # without a storage that Python sees
"""Where a tensor's memory begins, which its views share; 0 where it has none."""

_UNINITIALISED = frozenset(
    f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_")
)
"""Their outputs hold whatever the memory held: it means nothing until something is written there."""

_VIEWS = frozenset({"aten::_unsafe_view", "aten::_reshape_alias", "aten::lift_fresh"})
"""Views that the schema does not mark as such."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What is known of an operation before it runs.

    Attributes:
        name: Such as ``"aten.convolution"``.
        made: Places of the outputs that are new numbers (and no view of an input).
        written: Positions of the arguments that it writes to; keyword-only ones by name.
        initialises: Whether what it makes has defined numbers.
        silent: Whether it makes and writes nothing.
        numbers: Whether it takes any that could be infinite.
        run: torch's operator, without the Python around it.
        plain: Whether it makes one new tensor with defined numbers, writes to none, and takes no list of tensors and
            none by keyword.
    """

    name: str
    made: frozenset[int]
    written: tuple[int | str, ...]
    initialises: bool
    silent: bool
    numbers: bool
    run: Any
    plain: bool

    def targets(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
        """The tensors that a call writes to."""
        for place in self.written:
            if isinstance(place, str):
                yield from tensors_in(kwargs.get(place))
            elif place < len(args):
                yield from tensors_in(args[place])

    def outputs(self, result: object) -> Iterator[Tensor]:
        """The new tensors among what a call returned."""
        results = result if isinstance(result, (tuple, list)) else (result,)
        if self.made == {0} and len(results) != 1:  # one list of tensors
            yield from tensors_in(results)
            return
        for place, item in enumerate(results):
            if place in self.made:
                yield from tensors_in(item)


def operation(overload: Any) -> Operation:  # noqa: ANN401  # torch's OpOverload
    """What the schema of an operator says."""
    schema = overload._schema  # noqa: SLF001  # torch's own modes read it too
    name = schema.name
    written = tuple(
        argument.name if argument.kwarg_only else place
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    returned = [str(value.type) if value.alias_info is None else "" for value in schema.returns]
    made = () if name in _VIEWS else (place for place, kind in enumerate(returned) if "Tensor" in kind)
    # Of attention only the first output is numbers of the model: the rest is padding (with inf) and random state.
    fresh = frozenset(made) & {0} if "attention" in name else frozenset(made)
    tensors = [argument for argument in schema.arguments if "Tensor" in str(argument.type)]
    single = not any(argument.kwarg_only or "List" in str(argument.type) for argument in tensors)
    initialises = name not in _UNINITIALISED
    return Operation(
        name=name.replace("::", "."),
        made=fresh,
        written=written,
        initialises=initialises,
        silent=not (fresh or written),
        numbers=any(kind in str(argument.type) for argument in schema.arguments for kind in ("number", "float")),
        run=overload._op,  # noqa: SLF001  # a third of what calling an operator from Python takes is Python
        plain=returned == ["Tensor"] and bool(fresh) and single and not written and initialises,
    )


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in an argument: itself, or those of a list."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, torch.Tensor):
                yield item
