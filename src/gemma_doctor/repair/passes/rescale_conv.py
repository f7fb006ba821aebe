"""rescale-conv: a convolution's weights times 2^-k, which whatever reads its output takes out again.

## What it does

Multiplying by a power of two changes no digit of a binary number, only its exponent. The pass multiplies the weight,
and the bias, of a convolution whose outputs can leave float16's range by 2^-k:

| what reads the output | what takes the factor out |
| --- | --- |
| an RMS norm | the norm itself, but for its eps |
| a layer scale | its gain gets 2^k |
| a product (attention's value, read by its output projection) | that product's weight gets 2^k |
| a dot product (attention's query and key) | the other side gets 2^k |

k is the least that brings the outputs into their window (256 where the next norm squares them in float16, else 65504)
with one bit to spare. How large they can become is the proved bound; where that is so loose that the norm's eps would
be felt, 16 times their typical rms, as GD104 has it; and with `--calibration` the peak that was measured.

**Up as well as down.** A norm that squares in float16 fails from below too, in the backward pass: its gradient holds
the third power of its reciprocal root, which is inf in float16 where the mean square is below 65504^(-2/3) = 6.2e-4,
whatever the loss scale (GD402). So with `--calibration` a convolution whose outputs come near that, within two bits of
their root mean square (0.0098), is multiplied by the power of two that leaves as much room above as below. Where no
power serves both ends, the forward pass counts, and the edit says how low the mean square stays.

## Which findings it mends

GD104 fp16-conv-overflow-risk; with `--calibration` also convolutions without a finding whose measured peak leaves the
window, or whose least mean square comes near its lower end (GD402). It knows all 282 convolutions of Gemma 3n's image
encoder and those of its audio tower.

## Exactness

Exact up to a norm's eps. With mean square m at a position before scaling, the norm's output changes by a factor of at
least 1 - eps * 4^k / (2 m) and at most 1, for sqrt((m + eps) / (m + 4^k eps)) >= 1 - 4^k eps / (2 m). Each edit states
that number for one m: with `--calibration` the least that was measured; without, a cautious estimate from gains and
weights, in which the largest row of a matrix and whatever goes through a layer scale after a matrix count for nothing.
**The estimate is not a bound**: it assumes independent channels. A change of more than 2^-9, half of bfloat16's largest
rounding error, is refused. Multiplied by a power above 1, the norm's output comes closer to what it would be without
eps, by at most eps / (2 m) of its size; there up to 2^-4 is allowed, which only the positions with the least mean
squares reach, and a position keeps its direction. Where no norm is involved, exact. Weights stored in float16 can lose
bits as they become subnormal: then the edit is rounded and counts them, from the bytes. Where some become 0 it is
lossy, and needs `--unsafe`.

## Example

`msfa.ffn.pw_proj.conv.weight` of the demo, largest weight 98, in front of a norm with eps 1e-6: with k = 5, values
change by at most 5e-4 of their size wherever the mean square is 1 or more.

## Limits

* Positions whose mean square is far below the stated one (a black image, digital silence) change by more; there timm's
  own norm is already dominated by its eps. Pixels and log-mel features are taken at their largest, which flatters m.
* A norm that subtracts the mean (the audio tower's cumulative group norm) divides by the variance: m is then too large.
* Refused as well where, cast to float16, the scaled weights would be rounded by more than 2^-9 of their rms; where the
  tensor that takes 2^k would come near float16's limit (32752, GD103); and where weights are NaN or infinite.
* A measured peak holds for the inputs that were traced, and for no others. A position whose outputs are all 0 (a black
  image) has no gradient in float16, whatever the scale.
* The norms before attention and behind the fusion's pooling read no convolution: nothing brings them into their window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gemma_doctor.architectures.base import Absorber, Conv, Norm
from gemma_doctor.plans import Left, Scale
from gemma_doctor.records import Finding, Scalar
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left
from gemma_doctor.repair.evidence.outputs import Outputs, Reach
from gemma_doctor.repair.evidence.powers import Powers
from gemma_doctor.repair.evidence.scaling import SMALL, Note, RefusedError, scalable
from gemma_doctor.repair.evidence.windows import FLOOR, HEADROOM, LIFT, Window, least_exponent
from gemma_doctor.tensors import FP16_MAX

__all__ = ["PASS"]

_RULE = "GD104"
_BACKWARD = "GD402"
_INSTEAD = "The pass upcast-conv stores it in float32 instead."


def plan(case: Case) -> Iterator[Answer]:
    """The edits for each convolution with a finding, or with a measured peak beyond its limit."""
    rescaler = _Rescaler(case, Outputs(case.exam, case.calibration), Powers(case, _RULE, PASS.name))
    findings = {case.exam.canonical(finding.tensor or ""): finding for finding in case.findings}
    for name, finding in findings.items():
        if name not in case.exam.model.convs:
            yield left(finding, f"What reads its output is not known. {_INSTEAD}")
    # A reader grows by 2^k for the value that it reads: its own 2^-k comes first, so that both together are judged.
    for name, conv in sorted(case.exam.model.convs.items(), key=lambda item: _grows_a_reader(item[1])):
        if name in findings or rescaler.leaves(name):
            yield rescaler.mend(name, case.exam.as_stored(conv), findings.get(name))
        if rescaler.sinks(name):
            yield rescaler.lift(name, case.exam.as_stored(conv))


def _grows_a_reader(conv: Conv) -> bool:
    return conv.absorber is not None and conv.absorber.relation == "reader"


@dataclass(slots=True)
class _Rescaler:
    """The convolutions of one checkpoint.

    Attributes:
        case: The case.
        outputs: What is known of the convolutions' outputs.
        powers: By how much each tensor is scaled so far.
    """

    case: Case
    outputs: Outputs
    powers: Powers

    def leaves(self, name: str) -> bool:
        """Whether a measured peak is beyond the convolution's limit."""
        measured, tensor = self.outputs.measured(name), self.case.exam.measured(name)
        return bool(measured and tensor and tensor.limit and measured.peak > tensor.limit)

    def sinks(self, name: str) -> bool:
        """Whether measured mean squares come near the end of the window below which the backward pass overflows."""
        window = self.outputs.window(name, self.case.exam.model.convs[name])
        if window is None or window.most >= 0 or name in self.powers.exponents or self.leaves(name):
            return False
        return window.middle < 0 or window.sunk

    def lift(self, name: str, conv: Conv) -> Answer:
        """The edits that bring a convolution's outputs into their window from below."""
        window = self.outputs.window(name, conv)
        if window is None or window.middle >= 0:
            reason = f"{self._below(name, conv)}; its largest outputs leave no room to scale it up"
            return Left(_BACKWARD, "warning", self._disk(name), reason)
        try:
            return Mend(None, tuple(self._lifted(name, conv, window)))
        except RefusedError as refused:
            return Left(_BACKWARD, "warning", self._disk(name), str(refused))

    def _lifted(self, name: str, conv: Conv, window: Window) -> list[Scale]:
        """The edits of a lift.

        Raises:
            RefusedError: If one of them is not sound.
        """
        k, square = window.middle, self.outputs.square(name, conv).mean
        why = f"{self._below(name, conv)}; times 2^{-k} it is {math.ldexp(square, -2 * k):.2g}"
        ends = "" if window.wide else ", which is as far up as the largest output allows"
        evidence: dict[str, Scalar] = {"floor": FLOOR, "k": k}
        edits = self._neutral(name, conv, k, Note(f"{why}{ends}.", evidence))
        return self._noted([replace(edit, reason=replace(edit.reason, rule=_BACKWARD)) for edit in edits])

    def _below(self, name: str, conv: Conv) -> str:
        square = self.outputs.square(name, conv).mean
        return (
            f"Its outputs have a mean square of {square:.2g} at its least in the trace, and below {FLOOR:.1e} the "
            "gradient of the norm behind it is infinite in float16"
        )

    def mend(self, name: str, conv: Conv, finding: Finding | None) -> Answer:
        """The edits that bring a convolution's outputs into their window, by the first estimate that allows them."""
        refusal = "Its weight was not measured"
        for reach in self.outputs.reaches(name, conv):
            try:
                return Mend(finding, tuple(self._edits(name, conv, reach)))
            except RefusedError as refused:
                refusal = str(refused)
        reason = f"{refusal}. {_INSTEAD}"
        return left(finding, reason) if finding else Left(_RULE, "warning", self.case.exam.disk_name(name), reason)

    def _edits(self, name: str, conv: Conv, reach: Reach) -> list[Scale]:
        """The edits for one estimate.

        Raises:
            RefusedError: If one of them is not sound.
        """
        window = scalable(self.case.exam, name).limit or FP16_MAX
        k = least_exponent(reach.largest, window / HEADROOM) if reach.largest else 0
        if k <= 0:
            raise RefusedError(f"Its outputs reach {reach.largest:.4g} ({reach.why}), and may reach {window:g}")
        why = f"Outputs can reach {reach.largest:.4g} ({reach.why}), and {window:g} is too large; times 2^-{k} they "
        why = f"{why}stay within {window / HEADROOM:g}, one bit inside."
        evidence: dict[str, Scalar] = {"reach": reach.largest, "basis": reach.basis, "window": window, "k": k}
        note = Note(why, evidence).plus(*self._stays_low(name, conv, k))
        return self._noted(self._neutral(name, conv, k, note))

    def _stays_low(self, name: str, conv: Conv, k: int) -> tuple[str, dict[str, Scalar]]:
        """What the plan says where the forward pass asks for a power that is too small for the backward pass."""
        window = self.outputs.window(name, conv)
        if window is None or k <= window.most:
            return "", {}
        square = math.ldexp(self.outputs.square(name, conv).mean, -2 * k)
        return (
            f"No power of two serves both ends: the least mean square becomes {square:.2g}, and below {FLOOR:.1e} the "
            "norm's gradient is infinite in float16."
        ), {"floor": FLOOR}

    def _noted(self, edits: list[Scale]) -> list[Scale]:
        """The edits, once it is written down what each tensor comes to."""
        self.powers.noted(edits)
        return edits

    def _neutral(self, name: str, conv: Conv, k: int, note: Note) -> list[Scale]:
        """The edit of a weight, and those that keep the function what it is."""
        if conv.norm is not None:
            return self._absorbed(name, conv, conv.norm, k, note)
        if conv.absorber is not None:
            return self._taken_back(name, conv.absorber, k, note)
        raise RefusedError("Nothing that reads its output takes the factor out again")

    def _absorbed(self, name: str, conv: Conv, norm: Norm, k: int, note: Note) -> list[Scale]:
        """The edits where a norm takes the factor out, up to its eps."""
        gain = norm.weight.removesuffix(".weight").rpartition(".")[2]
        square = self.outputs.square(name, conv)
        change = square.change(norm.eps, k)
        if math.isnan(square.mean):
            raise RefusedError(f"The mean square that the norm '{gain}' divides by is not known: not all is measured")
        at = f"a mean square of {square.mean:.3g} ({square.where})"
        allowed = SMALL if k > 0 else LIFT
        if not change <= allowed:
            raise RefusedError(
                f"{note.text} But then the eps {norm.eps:g} of the norm '{gain}' is felt: at {at}, values change by "
                f"{change:.2g} of their size; {allowed:.2g} is allowed"
            )
        note = note.plus(
            f"The norm '{gain}' takes the factor out again; its eps, which stays as it is, changes values by at most "
            f"{change:.1e} of their size from {at} upwards.",
            {"eps": norm.eps, "mean_square": square.mean, "relative_change": change},
        )
        edits = [self.powers.scale(name, -k, "eps", note)]
        if conv.bias is not None:
            edits.append(self.powers.scale(conv.bias, -k, "eps", Note(f"Scaled with {self._disk(name)}.", {"k": k})))
        return edits

    def _taken_back(self, name: str, absorber: Absorber, k: int, note: Note) -> list[Scale]:
        """The edits where another tensor takes 2^k."""
        if absorber.relation == "dual":
            self._check_dual(absorber.tensor, k)
        note = note.plus(f"{self._disk(absorber.tensor)} takes the factor back, so that no result changes.", {})
        back = Note(f"Takes back the factor 2^-{k} of {self._disk(name)}.", {"k": k})
        return [self.powers.scale(name, -k, "exact", note), self.powers.scale(absorber.tensor, k, "exact", back)]

    def _check_dual(self, name: str, k: int) -> None:
        """The other side of a dot product grows by 2^k: its outputs must have that room."""
        room = (scalable(self.case.exam, name).limit or FP16_MAX) / HEADROOM
        conv = self.case.exam.model.convs[name]
        least = min((reach.largest for reach in self.outputs.reaches(name, conv)), default=math.inf)
        if math.ldexp(least, k) > room:
            raise RefusedError(
                f"{self._disk(name)} would have to take 2^{k}, and its own outputs, which reach {least:.4g}, would "
                f"pass {room:g}"
            )

    def _disk(self, name: str) -> str:
        return self.case.exam.disk_name(name)


PASS = Pass("rescale-conv", "eps", (_RULE,), plan, conflicts=("upcast-conv",))
