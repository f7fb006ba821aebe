"""What is known of a convolution's outputs: how large they can become, and what a scaling of them changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from gemma_doctor.architectures.base import Conv
from gemma_doctor.architectures.bounds import Bound, Prover
from gemma_doctor.architectures.expressions import Linear
from gemma_doctor.architectures.limits import SQUARE_LIMIT
from gemma_doctor.architectures.typical import REACH, cautious_rms, row_spread
from gemma_doctor.examination import Examination
from gemma_doctor.repair.evidence.calibration import Calibration, Measured
from gemma_doctor.repair.evidence.windows import Window
from gemma_doctor.tensors import MeasuredTensor

__all__ = ["Outputs", "Reach", "Square"]


@dataclass(frozen=True, slots=True)
class Reach:
    """How large outputs can become.

    Attributes:
        largest: The magnitude.
        basis: ``"measured"`` in a trace, ``"proved"`` from the weights, or ``"likely"``.
        why: The same for a message.
    """

    largest: float
    basis: str
    why: str


@dataclass(frozen=True, slots=True)
class Square:
    """The mean square over the channels of outputs at a position.

    Attributes:
        mean: The mean square; NaN where nothing is known.
        where: Which positions it speaks of, for a message.
    """

    mean: float
    where: str

    def change(self, eps: float, exponent: int) -> float:
        """How much an RMS norm's output changes, relative to its size, if its input is multiplied by 2**-exponent.

        The output is x / sqrt(m + eps) before, and 2^-k x / sqrt(4^-k m + eps) = x / sqrt(m + 4^k eps) after. Their
        quotient is sqrt((m + eps) / (m + 4^k eps)) >= 1 - 4^k eps / (2 m), and for a negative k, which makes the output
        larger, at most sqrt(1 + eps / m) <= 1 + eps / (2 m).

        Args:
            eps: The norm's eps.
            exponent: k.

        Returns:
            4^k eps / (2 m), with 0 in place of a negative k; inf where m is 0 or unknown.
        """
        return eps * 4.0 ** max(exponent, 0) / (2 * self.mean) if self.mean > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a checkpoint's convolutions, from its weights and perhaps from a trace.

    Attributes:
        exam: The examined checkpoint.
        calibration: The trace; None where there is none.
    """

    exam: Examination
    calibration: Calibration | None
    _tensors: Mapping[str, MeasuredTensor] = field(init=False, repr=False)
    _prover: Prover = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tensors = {self.exam.canonical(name): tensor for name, tensor in self.exam.tensors.items()}
        object.__setattr__(self, "_tensors", tensors)
        object.__setattr__(self, "_prover", Prover({name: tensor.stats for name, tensor in tensors.items()}))

    def measured(self, name: str) -> Measured | None:
        """What the trace says of a convolution.

        Args:
            name: Its weight's canonical name; the trace may call it by its name on disk as well.
        """
        if self.calibration is None:
            return None
        modules = (known.removesuffix(".weight") for known in (name, self.exam.disk_name(name)))
        return next((self.calibration.modules[m] for m in modules if m in self.calibration.modules), None)

    def window(self, name: str, conv: Conv) -> Window | None:
        """Where a convolution's measured outputs lie in the window of the norm that squares them in float16.

        Args:
            name: Its weight's canonical name.
            conv: The convolution.

        Returns:
            The window; None where no such norm reads them, or the trace does not say how large and small they are.
        """
        measured = self.measured(name)
        if conv.norm is None or conv.norm.squares_in != "input":
            return None
        if measured is None or not measured.peak or not measured.mean_square_min:
            return None
        return Window.of(measured.peak, measured.mean_square_min, SQUARE_LIMIT)

    def reaches(self, name: str, conv: Conv) -> Iterator[Reach]:
        """How large a convolution's outputs can become, the best answer first.

        A measured peak is the only answer where there is one. Else what is proved comes first, and then what is
        likely: 16 times the rms that the weights imply for the largest channel, as GD104 reckons.

        Args:
            name: Its weight's canonical name; nothing is known of a weight that was not measured.
            conv: The convolution as it is stored.
        """
        weight, measured = self._tensors.get(name), self.measured(name)
        if measured is not None:
            yield Reach(measured.peak, "measured", "the peak in the trace")
            return
        if weight is None:
            return
        proof = self._prover.output(conv, weight.stats)
        loose = "no bound is proved"
        if isinstance(proof, Bound) and math.isfinite(proof.peak):
            loose = f"the proved bound, {proof.peak:.4g}, is too loose to scale by"
            yield Reach(proof.peak, "proved", f"proved: {proof.why}")
        likely = REACH * row_spread(conv, weight, self._tensors)
        yield Reach(likely, "likely", f"{REACH:g} times their typical rms; {loose}")

    def square(self, name: str, conv: Conv) -> Square:
        """The mean square of a convolution's outputs at a position, measured at its least, or cautiously estimated.

        Args:
            name: Its weight's canonical name.
            conv: The convolution.
        """
        measured = self.measured(name)
        if measured is not None and measured.mean_square_min is not None:
            return Square(measured.mean_square_min, "at its least in the trace")
        rms = cautious_rms(Linear(name, conv.source, conv.taps, conv.depthwise), self._tensors)
        return Square(rms * rms, "a cautious estimate from the weights; --calibration measures it")
