"""What an operation does to its tensors: what it writes, what it only shows again, what it leaves uninitialised."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Operation", "address", "operation", "tensors_in"]

_address: Callable[[Tensor], int] = torch._C._data_address  # noqa: SLF001  # without a storage that Python sees

_UNINITIALISED = frozenset(
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"),
        *("resize_", "resize_as_"),
    )
)
"""Their outputs hold whatever the memory held: it means nothing until something is written there."""

_VIEWS = frozenset({"aten::_unsafe_view", "aten::_reshape_alias"})
"""Views that the schema does not mark as such."""

_UNWRITTEN = frozenset({"aten::detach_", "aten::requires_grad_"})
"""They write to what autograd knows of a tensor, and not to its numbers, as the schema has it."""

_CONSTANT = "aten::lift_fresh"
"""What gives ``torch.tensor(1.0)`` its tensor: a view by its schema, of memory that nobody has seen yet."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What is known of an operation before it runs.

    Attributes:
        name: Such as ``"aten.convolution"``.
        made: Places of the outputs that are new numbers (and no view of an input).
        besides: Places of other new outputs, which mean nothing to the model.
        several: Whether it returns several things; a list of tensors is one.
        written: Positions and names of the arguments that it writes to.
        initialises: Whether what it makes has defined numbers.
        silent: Whether it makes and writes nothing.
        numbers: Whether it takes any that could be infinite.
        run: torch's operator, without the Python around it.
        plain: Whether it makes one new tensor with defined numbers, writes to none, takes no list of tensors and none
            by keyword, and never gives back what it was given, as dropout does in inference mode.
    """

    name: str
    made: frozenset[int]
    besides: frozenset[int]
    several: bool
    written: tuple[tuple[int, str], ...]
    initialises: bool
    silent: bool
    numbers: bool
    run: Any
    plain: bool

    def targets(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
        """The tensors that a call writes to."""
        for place, name in self.written:
            yield from tensors_in(args[place] if place < len(args) else kwargs.get(name))

    def outputs(self, result: Any, places: Container[int]) -> Iterator[Tensor]:  # noqa: ANN401  # whatever it returns
        """The tensors at these places of what a call returned."""
        for place, item in enumerate(result if self.several else (result,)):
            if place in places:
                yield from tensors_in(item)


def address(tensor: Tensor) -> int:
    """Where a tensor's memory begins, which its views share; 0 where it has none of its own, as a sparse one."""
    try:
        return _address(tensor)
    except NotImplementedError:
        return 0


def operation(overload: Any) -> Operation:  # noqa: ANN401  # torch's OpOverload
    """What the schema of an operator says."""
    schema = overload._schema  # noqa: SLF001  # torch's own modes read it too
    name = schema.name
    written = tuple(
        (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write and name not in _UNWRITTEN
    )
    returned = [str(value.type) if value.alias_info is None else "" for value in schema.returns]
    fresh = frozenset(place for place, kind in enumerate(returned) if "Tensor" in kind and name not in _VIEWS)
    # Of attention only the first output is numbers of the model: the rest is padding (with inf) and random state.
    made = fresh & {0} if "attention" in name and "backward" not in name else fresh
    besides = frozenset({0}) if name == _CONSTANT else fresh - made
    tensors = [argument for argument in schema.arguments if "Tensor" in str(argument.type)]
    composed = overload.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)  # noqa: SLF001
    numbers = any(kind in str(argument.type) for argument in schema.arguments for kind in ("number", "float"))
    single = not any(argument.kwarg_only or "List" in str(argument.type) for argument in tensors)
    initialises = name not in _UNINITIALISED
    return Operation(
        name=name.replace("::", "."),
        made=made,
        besides=besides,
        several=len(returned) > 1,
        written=written,
        initialises=initialises,
        silent=not (fresh or besides or written),
        numbers=numbers or [str(argument.type) for argument in tensors].count("Tensor") > 1,  # x * inf: tensors to it
        run=overload._op,  # noqa: SLF001  # a third of what calling an operator from Python takes is Python
        plain=returned == ["Tensor"] and bool(fresh) and single and not written and initialises and not composed,
    )


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in an argument: itself, or those of a list."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, torch.Tensor):
                yield item
