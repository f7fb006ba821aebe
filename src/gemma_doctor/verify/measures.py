"""How to verify: what the user may choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gemma_doctor.choices import Device, Modality, Mode, Reference
from gemma_doctor.errors import UsageError

__all__ = ["Measures", "Request", "untold"]

_SEED_BITS = 64
"""Of torch.manual_seed; numpy.random.default_rng takes no negative one."""


@dataclass(frozen=True, slots=True)
class Request:
    """How large and of what the input is to be.

    Attributes:
        length: Tokens of text in a sequence.
        size: Sequences in a batch.
        seed: For whatever is random; from 0 to 2**64 - 1.
        text: The user's own text file, UTF-8.
        image: The user's own picture.
        audio: The user's own sound: WAV, 16-bit, 16 kHz.
        side: Height and width of pictures in pixels; None for the checkpoint's.
    """

    length: int = 128
    size: int = 1
    seed: int = 0
    text: Path | None = None
    image: Path | None = None
    audio: Path | None = None
    side: int | None = None

    def __post_init__(self) -> None:
        """Refuse a seed that torch or NumPy does not take.

        Raises:
            UsageError: If it is negative, or has more than 64 bits.
        """
        if self.seed < 0 or self.seed.bit_length() > _SEED_BITS:
            raise UsageError(f"--seed {self.seed}: take one from 0 to 2^{_SEED_BITS} - 1")


@dataclass(frozen=True, slots=True)
class Measures:
    """How to verify.

    Attributes:
        device: Where to; ``auto`` is a GPU where there is one.
        mode: Weights in float16, or autocast over float32 weights.
        backward: Whether gradients are computed.
        modalities: What the model is given; all that it takes where empty.
        reference: ``none`` where only infinities and NaNs are to be told, and no drift.
        loss_scale: The only loss scale to try; None searches.
        memory_limit: GiB that tensors may take on a GPU; None for all of it.
        guard: Whether the float16-safe kernels take the place of the model's own.
        checkpointing: Whether layers are computed again in the backward pass instead of being kept.
        frozen: Globs over names of parameters that are not trained, so that no gradient is asked for.
        request: What the input is to be.
    """

    device: Device = "auto"
    mode: Mode = "half"
    backward: bool = True
    modalities: tuple[Modality, ...] = ()
    reference: Reference = "float32"
    loss_scale: float | None = None
    memory_limit: float | None = None
    guard: bool = False
    checkpointing: bool = False
    frozen: tuple[str, ...] = ()
    request: Request = field(default_factory=Request)


def untold(_: str) -> None:
    """For whoever does not want to know what a verification does next."""
