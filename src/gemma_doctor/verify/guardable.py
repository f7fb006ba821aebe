"""Whether the float16-safe kernels know a model: by the classes of its modules, before any weight is loaded."""

from __future__ import annotations

import torch
from torch import nn

from gemma_doctor.errors import UsageError
from gemma_doctor.kernels.guards.guarding import knows
from gemma_doctor.verify.loading import Subject

__all__ = ["check_known"]


def check_known(subject: Subject) -> None:
    """Refuse a model in which nothing can be guarded, without memory for its weights.

    Args:
        subject: The checkpoint.

    Raises:
        UsageError: If the kernels know none of its modules.
    """
    with torch.device("meta"):
        skeleton: nn.Module = subject.build(subject.config)
    if not knows(skeleton):
        raise UsageError(
            f"--guard knows nothing in a {subject.build.__name__}. It knows Gemma 3 and Gemma 3n. Verify any "
            "other model without --guard, and mend what is found with `gemma-doctor repair`, or run it in bfloat16 or "
            "float32"
        )
