"""Which module is running: forward by hooks, backward by the sequence numbers of autograd's nodes.

In the forward pass autograd numbers its nodes in the order in which they are made. So the numbers at which the running
module changed say later, in the backward pass, which module made the node whose gradient is being computed. That is
exact for what happens between modules too, and costs no hook on any tensor.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from gemma_doctor.verify.events import Place, Spot
from gemma_doctor.verify.operations import address
from gemma_doctor.verify.passing import ordinary
from gemma_doctor.verify.streaming import Streamed, streamed

__all__ = ["Marks", "Places"]

_graph_task = torch._C._current_graph_task_id  # noqa: SLF001  # torch.utils.module_tracker asks it too
_running_node = torch._C._current_autograd_node  # noqa: SLF001  # no public name tells it

_END = 1 << 63
"""Numbers from here on belong to the ends of the graph, where parameters' gradients are added up."""


@dataclass(slots=True)
class Marks:
    """Which module was running when each node of the backward pass was made; holds nothing of the model.

    Attributes:
        numbers: Sequence numbers of autograd's nodes, growing.
        running: The module from each of them on.
    """

    numbers: list[int] = field(default_factory=list)
    running: list[str] = field(default_factory=list)

    def put(self, module: str) -> None:
        """From now on this module runs."""
        self.numbers.append(torch.autograd._get_sequence_nr())  # noqa: SLF001
        self.running.append(module)

    def found(self, spots: Iterable[Spot]) -> Iterator[Place]:
        """Phase and module of what :meth:`Places.here` told; of a node of the backward pass, what made it."""
        for spot in spots:
            if isinstance(spot, int):
                at = bisect_right(self.numbers, spot)
                yield "backward", self.running[at - 1] if at else ""
            else:
                yield spot


@dataclass(slots=True)
class Places:
    """The places of one model.

    Attributes:
        names: Each module's name in the model; empty for the model itself.
        parameters: Each parameter's and buffer's name, by its identity.
        storages: The same, by the address of its memory: views of a parameter have that address too.
        owners: Each parameter, with the name of the module that it belongs to.
        ordinary: Whether all of them are ordinary tensors, which have no answer of their own to operations.
        offloaded: The weights that have memory only while they are used; None where all have.
        marks: What tells the module of a node of the backward pass.
        running: Which of ``names`` runs, and how many are entered; for compiled code, which asks no Python.
    """

    names: dict[nn.Module, str]
    parameters: dict[int, str]
    storages: dict[int, str]
    owners: list[tuple[nn.Parameter, str]]
    ordinary: bool = True
    offloaded: Streamed | None = None
    marks: Marks = field(default_factory=Marks)
    running: array[int] = field(default_factory=lambda: array("q", [0, 0]))
    _stack: list[str] = field(default_factory=list)
    _forward: Place = ("forward", "")
    _numbers: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._numbers = {name: number for number, name in enumerate(self.names.values())}

    @classmethod
    def of(cls, model: nn.Module) -> Places:
        """The places of ``model``."""
        tensors = [*model.named_buffers(), *model.named_parameters()]
        return cls(
            names={module: name for name, module in model.named_modules()},
            parameters={id(tensor): name for name, tensor in tensors},
            storages={address(tensor): name for name, tensor in tensors if not tensor.is_meta},
            owners=[(parameter, name.rpartition(".")[0]) for name, parameter in model.named_parameters()],
            ordinary=ordinary(tensor for _, tensor in tensors),
            offloaded=streamed(model),
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts, the running module is known."""
        handles = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._stack.clear()
            self._forward = "forward", ""
            self.running[:] = array("q", [0, 0])

    def here(self) -> Spot:
        """Where what runs now belongs. What a checkpointed layer computes again belongs to the backward pass."""
        if _graph_task() == -1:
            return self._forward
        if self._stack:
            return "backward", self._stack[-1]
        node: Any = _running_node()
        if node is None:
            return "backward", ""
        number: int = node._sequence_nr()  # noqa: SLF001
        if number < _END:
            return number
        variable = getattr(node, "variable", None)
        return "backward", self.parameters.get(id(variable), "").rpartition(".")[0]

    def _enter(self, module: nn.Module, _args: object) -> None:
        name = self.names.get(module)
        if name is not None:
            self._stack.append(name)
            self._mark(name)

    def _leave(self, module: nn.Module, _args: object, _output: object) -> None:
        if module in self.names and self._stack:
            self._stack.pop()
            self._mark(self._stack[-1] if self._stack else "")

    def _mark(self, module: str) -> None:
        self._forward = "forward", module
        self.running[0], self.running[1] = self._numbers[module], len(self._stack)
        if _graph_task() == -1:
            self.marks.put(module)
