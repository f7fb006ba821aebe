"""Forward and backward through weights that accelerate keeps elsewhere, with no more of them on the device than run.

accelerate fills a layer's weights in before it runs and takes them away afterwards. Autograd undoes that: what it saves
for the backward pass and the nodes that gather gradients hold on to every weight that was ever filled in, and the
gradients end at tensors that the model no longer has. So here

* a weight enters the graph as the output of a node of its own, which holds no memory and hands the gradient on,
* of a weight that autograd would save, or of a cast of one, the place is saved, and it is read again when it is needed,
* a gradient is given away as soon as all uses of its weight have added to it.

The operations are those of a model that is wholly on its device, in the same order, and so are their numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import set_checkpoint_early_stop

from gemma_doctor.verify.offloaded import weights_of
from gemma_doctor.verify.operations import address
from gemma_doctor.verify.passing import unseen

__all__ = ["Gather", "Streamed", "stream", "streamed"]

Gather: TypeAlias = Callable[[str, Tensor], None]
"""What is given the name of each parameter and its gradient."""


@dataclass(slots=True, eq=False)
class Streamed:
    """The offloaded weights of one model while it runs.

    Attributes:
        names: Where those that are filled in lie: an entry for each is put here, for whoever follows numbers.
    """

    names: MutableMapping[int, Any] = field(default_factory=dict)
    _there: list[_Filled] = field(default_factory=list)
    _uses: Counter[str] = field(default_factory=Counter)
    _came: Counter[str] = field(default_factory=Counter)
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _gather: Gather | None = None
    _root: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))

    @contextmanager
    def running(self) -> Iterator[None]:
        """While it lasts, the model runs forward, and its graph may be wanted."""
        self._uses.clear()
        # A layer that stopped early when it is computed again would keep its weights.
        with saved_tensors_hooks(self._pack, _unpack), set_checkpoint_early_stop(enable=False):
            yield

    @contextmanager
    def giving(self, gather: Gather) -> Iterator[None]:
        """While it lasts, the model runs backward, and ``gather`` is given each weight's gradient once."""
        self._came.clear()
        self._gather = gather
        try:
            yield
            for name, total in self._sums.items():  # some of its uses had no part in the loss
                gather(name, total)
        finally:
            self._sums.clear()
            self._gather = None

    def receive(self, name: str, gradient: Tensor) -> None:
        """The gradient of one use of a weight. They are added up in the order in which they come, as autograd does."""
        known = self._sums.pop(name, None)
        total = gradient if known is None else known + gradient
        self._came[name] += 1
        if self._gather is not None and self._came[name] == self._uses[name]:
            self._gather(name, total)
        else:
            self._sums[name] = total

    def enter(self, filled: list[_Filled]) -> None:
        """Weights have been filled in."""
        self.names.update({address(one.value): one.place.name for one in filled})
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:  # noqa: SLF001  # computed again
            return
        self._there += filled
        for one in filled:
            if not one.place.empty.requires_grad:
                continue
            self._uses[one.place.name] += 1
            one.place.put(_Use.apply(self._root, self, one))

    def leave(self, filled: list[_Filled]) -> None:
        """They are about to be taken away."""
        self._there = [one for one in self._there if one not in filled]
        for one in filled:
            self.names.pop(address(one.value), None)
            one.place.put(one.value)

    def _pack(self, tensor: Tensor) -> Tensor | _Saved:
        """What autograd keeps of a tensor."""
        where = address(tensor)
        for one in self._there:
            if address(one.value) == where or one.is_cast_to(tensor):
                kind = tensor.device, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
                return _Saved(self, one.place, *kind)
        return tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a weight belongs.

    Attributes:
        owner: The module that has it.
        short: Its name there.
        name: Its name in the model; the first one where it has several.
        empty: The parameter without memory that stands for it; says whether it is trained.
        source: What keeps it, by ``short``.
    """

    owner: nn.Module
    short: str
    name: str
    empty: nn.Parameter
    source: Any

    def put(self, value: Tensor) -> None:
        """Make a tensor the weight, whether it is a parameter or not."""
        self.owner._parameters[self.short] = value  # noqa: SLF001

    def read(self, device: torch.device) -> Tensor:
        """It, once more."""
        kept: Tensor = self.source[self.short]
        return kept.detach().to(self.empty.dtype).to(device)


@dataclass(frozen=True, slots=True, eq=False)
class _Filled:
    """A weight that is on the device."""

    place: _Place
    value: nn.Parameter

    def is_cast_to(self, tensor: Tensor) -> bool:
        """Whether a tensor holds this weight in another dtype and in the same order, bit for bit."""
        value = self.value
        if tensor.numel() != value.numel() or tensor.dtype == value.dtype or not tensor.is_floating_point():
            return False
        if tensor.untyped_storage().nbytes() != tensor.nbytes or not value.is_contiguous():
            return False
        with unseen(), torch.no_grad():
            seen = tensor.as_strided((tensor.numel(),), (1,), 0)
            cast = value.to(tensor.dtype).view(-1)
            return bool(torch.equal(seen.view(torch.uint8), cast.view(torch.uint8)))


@dataclass(frozen=True, slots=True, eq=False)
class _Saved:
    """A view of a weight, or of a cast of it, that autograd wants back later."""

    streamed: Streamed
    place: _Place
    device: torch.device
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


def _unpack(saved: Tensor | _Saved) -> Tensor:
    """What autograd kept."""
    if isinstance(saved, Tensor):
        return saved
    with unseen():
        again = saved.place.read(saved.device).to(saved.dtype).as_strided(saved.shape, saved.stride, saved.offset)
    saved.streamed.names[address(again)] = saved.place.name
    return again


class _Use(torch.autograd.Function):  # type: ignore[misc]  # torch is not seen by the type checker
    """One use of a weight: its value forward, and backward the gradient handed on to :class:`Streamed`."""

    @staticmethod
    def forward(ctx: Any, _root: Tensor, streamed: Streamed, filled: _Filled) -> Tensor:  # noqa: ANN401
        """The weight. ``_root`` requires a gradient, and so does what is returned."""
        ctx.set_materialize_grads(False)
        ctx.streamed, ctx.name = streamed, filled.place.name
        return filled.value.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[None, None, None]:  # noqa: ANN401
        """Nothing for ``_root``."""
        if gradient is not None:
            ctx.streamed.receive(ctx.name, gradient)
        return None, None, None


class _Hook:
    """In the place of accelerate's hook on a module: does what that does, and keeps the graph free of weights."""

    def __init__(self, inner: Any, weights_map: Any, places: list[_Place], streamed: Streamed) -> None:  # noqa: ANN401
        self.inner = inner
        self.weights_map = weights_map
        self.streamed = streamed
        self.no_grad = inner.no_grad
        self._places = places
        self._filled: list[list[_Filled]] = []

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # accelerate's
        """Fill the weights in; a trace does not see it."""
        with unseen():
            given = self.inner.pre_forward(module, *args, **kwargs)
        filled = [_Filled(place, module._parameters[place.short]) for place in self._places]  # noqa: SLF001
        self._filled.append(filled)
        self.streamed.enter(filled)
        return given

    def post_forward(self, module: nn.Module, output: Any) -> Any:  # noqa: ANN401  # accelerate's
        """Take them away."""
        self.streamed.leave(self._filled.pop())
        with unseen():
            given = self.inner.post_forward(module, output)
        for place in self._places:
            place.put(place.empty)  # accelerate makes a new one each time, and tied ones become two
        return given


def stream(model: nn.Module, device: torch.device) -> None:
    """Have a model that accelerate spread run forward and backward within its device's memory.

    Args:
        model: A model as ``from_pretrained`` gave it; one that is wholly on its device stays as it is.
        device: Where it runs.
    """
    _tie(model)
    _settle(model, device)
    together = Streamed()
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        weights = weights_of(hook)
        places = []
        for short, parameter in module._parameters.items():  # noqa: SLF001  # tied ones too
            if parameter is not None and parameter.is_meta and parameter.is_floating_point() and weights is not None:
                full = names.setdefault(id(parameter), f"{name}.{short}" if name else short)
                places.append(_Place(module, short, full, parameter, weights))
        if places:
            module._hf_hook = _Hook(hook, weights, places, together)  # noqa: SLF001  # accelerate calls it


def _tie(model: nn.Module) -> None:
    """Make tied weights one again: accelerate leaves an empty parameter of its own for each."""
    for other, name in getattr(model, "all_tied_weights_keys", {}).items():
        one, (owner, _, short) = model.get_parameter(name), other.rpartition(".")
        if one.is_meta and model.get_parameter(other).is_meta:
            model.get_submodule(owner)._parameters[short] = one  # noqa: SLF001


def _settle(model: nn.Module, device: torch.device) -> None:
    """Have its parts say that they are where they run.

    transformers sends a picture to where the first parameter of timm's encoder is, and an empty one is nowhere. The
    property that tells it can be replaced for a class only, so such a part gets one of its own, of the same name.
    """
    for module in model.modules():
        if isinstance(getattr(module, "device", None), torch.device) and module.device.type == "meta":
            kind = type(module)
            module.__class__ = type(kind.__name__, (kind,), {"device": property(lambda _: device)})


def streamed(model: nn.Module) -> Streamed | None:
    """What :func:`stream` made of a model's offloaded weights; None where it has none."""
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    return next((hook.streamed for hook in hooks if isinstance(hook, _Hook)), None)
