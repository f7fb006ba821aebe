"""All passes, in the order in which their edits compose, and how a user names some of them."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_doctor.checkpoint.quoting import quoted
from gemma_doctor.errors import UsageError
from gemma_doctor.pages import page_of
from gemma_doctor.repair.evidence.case import Pass
from gemma_doctor.repair.passes import (
    add_stem_bias,
    cast_dtype,
    clamp_overflow,
    drop_tied_head,
    gguf_uint32,
    prune_shared_kv,
    rename_keys,
    rescale_conv,
    rescale_residual,
    upcast_conv,
    zero_nonfinite,
)
from gemma_doctor.spelling import did_you_mean

__all__ = ["PASSES", "find_pass", "page", "select"]

PASSES: tuple[Pass, ...] = (
    zero_nonfinite.PASS,
    clamp_overflow.PASS,
    rescale_conv.PASS,
    rescale_residual.PASS,
    upcast_conv.PASS,
    cast_dtype.PASS,
    prune_shared_kv.PASS,
    drop_tied_head.PASS,
    add_stem_bias.PASS,
    rename_keys.PASS,
    gguf_uint32.PASS,
)
"""Every pass. Literal on purpose: nothing is registered by being imported."""


def find_pass(name: str) -> Pass:
    """The pass of that name, in any case.

    Raises:
        UsageError: If there is none; the message proposes the closest one.
    """
    known = {one.name: one for one in PASSES}
    if name.lower() not in known:
        raise UsageError(f"no pass {quoted(name)}{did_you_mean(name.lower(), known)}")
    return known[name.lower()]


def select(names: Sequence[str], format_: str | None = None) -> tuple[Pass, ...]:
    """The passes of these names, in the order of :data:`PASSES`; all that fit the format where no name is given.

    Args:
        names: What the user asks for.
        format_: The checkpoint's format; None where it is not known yet.

    Raises:
        UsageError: If a name is unknown, a pass cannot edit the format, or two of the passes mend the same tensors in
            different ways.
    """
    if not names:
        return tuple(one for one in PASSES if format_ is None or format_ in one.formats)
    chosen = {find_pass(name).name for name in names}
    passes = tuple(one for one in PASSES if one.name in chosen)
    for one in passes:
        if format_ is not None and format_ not in one.formats:
            raise UsageError(f"the pass {one.name} edits {' and '.join(one.formats)}, and this checkpoint is {format_}")
        other = next((name for name in one.conflicts if name in chosen), None)
        if other is not None:
            raise UsageError(
                f"the passes {one.name} and {other} mend the same tensors in different ways: ask for one of them"
            )
    return passes


def page(one: Pass) -> str:
    """The pass's page in Markdown: the docstring of its module, its first line made a title.

    Raises:
        UsageError: If Python runs with ``-OO``, which removes docstrings.
    """
    return page_of(one.plan)
