"""What a trace does not see: what is done beside the model; and views, which are a third of a step's operations.

torch calls a dispatch mode for every operation, and what that takes is most of what a trace costs. What a view shows
has been measured where it was made, and lies at the same address. So the key by which torch calls a mode falls through
for the views that models use most. That holds for the whole process, and for other modes too: it is not for where one
is entered already, nor for tensors of a class that has an answer of its own to each operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, local

import torch
from torch import Tensor, library
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["VIEWS", "ordinary", "unseen", "views_pass"]

VIEWS = (
    "_reshape_alias",
    "_unsafe_view",
    "alias",
    "as_strided",
    "detach",
    "expand",
    "permute",
    "select.int",
    "slice.Tensor",
    "split.Tensor",
    "split_with_sizes",
    "squeeze",
    "squeeze.dim",
    "squeeze.dims",
    "t",
    "transpose.int",
    "unbind.int",
    "unsqueeze",
    "view",
)
"""Operators of ``aten`` whose outputs are views, and nothing else."""

_MODES = torch._C.DispatchKey.Python  # noqa: SLF001  # no public name tells it
"""The key by which torch calls modes, and classes that answer for themselves."""

_lock = Lock()
_entered = 0
_held = ExitStack()


class _Thread(local):
    """What a thread has entered.

    Attributes:
        unseen: How many times :func:`unseen`.
    """

    unseen = 0


_thread = _Thread()


def ordinary(tensors: Iterable[Tensor]) -> bool:
    """Whether no class of these tensors has an answer of its own to operations, as torchao's quantised weights do."""
    return not any(torch._C._dispatch_keys(tensor).has(_MODES) for tensor in tensors)  # noqa: SLF001


@contextmanager
def unseen() -> Iterator[None]:
    """While it lasts, no trace sees what this thread does: neither a dispatch mode nor an observer of operators.

    It may be entered again meanwhile.
    """
    observed = torch.autograd._enable_record_function  # noqa: SLF001  # torch's profiler calls it so too
    observed(False)  # noqa: FBT003
    _thread.unseen += 1
    try:
        with _disable_current_modes():
            yield
    finally:
        _thread.unseen -= 1
        observed(not _thread.unseen)


@contextmanager
def views_pass() -> Iterator[None]:
    """While it lasts, in all threads, no dispatch mode sees :data:`VIEWS`. It may be entered again meanwhile.

    Where a mode is entered already, nothing changes: that one may have to see them.
    """
    if torch._C._len_torch_dispatch_stack():  # noqa: SLF001  # no public name tells it
        yield
        return
    _begin()
    try:
        yield
    finally:
        _end()


def _begin() -> None:
    global _entered  # noqa: PLW0603  # torch's table of operators is one for the process
    with _lock, ExitStack() as begun:
        if not _entered:
            # A compiler works on tensors of a class of its own. What is compiled runs operation by operation meanwhile.
            begun.enter_context(torch.compiler.set_stance("force_eager"))
            views = library.Library("aten", "IMPL", "Python")
            begun.callback(views._destroy)  # noqa: SLF001  # as torch's documentation says
            for name in VIEWS:
                views.impl(name, library.fallthrough_kernel)
            _held.push(begun.pop_all())
        _entered += 1


def _end() -> None:
    global _entered  # noqa: PLW0603  # the same
    with _lock:
        _entered -= 1
        if not _entered:
            _held.close()
