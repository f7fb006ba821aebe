"""rescale-residual: whatever writes Gemma's residual stream times 2^-k, which whatever reads it takes out again.

## What it does

Multiplying by a power of two changes no digit of a binary number, only its exponent. Gemma reads its residual stream
through norms, and a norm gives the same for x and for 2^-k x, but for its eps. So the pass multiplies

| | by 2^-k | by 2^k |
| --- | --- | --- |
| Gemma 2 and 3 | the embedding; the projector of images; 1 + w of the norms behind attention and feed-forward | 1 + w \
of the final norm, if the head is the embedding |
| Gemma 3n, text | the embedding; the norms before attention and behind attention, feed-forward, LAuReL and the \
layer's own input | q, k, v, LAuReL's first matrix, `per_layer_input_gate`, `per_layer_model_projection`; the final \
norm, if the head is the embedding |

and, inside a layer, where a bound leaves float16: q_proj or k_proj (their norms take the factor out), v_proj and
o_proj (the norm behind attention does; Gemma 3n normalises values), up_proj and down_proj (the norm behind
feed-forward does) and LAuReL's first matrix; all that need it, or none, for a proof needs them all.

k is the least that brings every state of the stream below its limit (65504, or 256 where it is squared): by the bounds
of GD301, which hold whatever the input, roundings included; with `--calibration` by the peaks of the trace, with two
bits to spare, for other inputs reach further. Inside the layers the bounds count even then, if every state of the
streams is proved to fit: what is left is little, and buys the proof.

**Certified**: where every bound of the model fits once the plan is carried out, the plan says so, and a scan of the
result says it again: the model cannot overflow in the forward pass, whatever the input. What that assumes stands in
the plan, and on the page of GD301: the attention above all, for eager attention writes its scores in float16, and the
plan says apart whether those fit.

## Which findings it mends

GD301 fp16-residual-overflow-risk; with `--calibration` also a stream without a finding whose measured peak leaves its
limit (AltUp's, of which nothing is proved).

## Exactness

Exact up to a norm's eps: with mean square m at a position before scaling, its output changes by a factor of at least
1 - eps * 4^k / (2 m) and at most 1. Each edit states that number for the least m of the trace, or for a cautious
estimate from the weights, which is not a bound. A change of more than 2^-9 is not made:

* of Gemma 2's and 3's stream, **the eps shrinks as well**, times 4^-k in `config.json`, and so does what the other
  norms read that have the same eps: q_proj and k_proj (for q_norm and k_norm), o_proj and down_proj (for the norms
  behind attention and feed-forward) times 2^-k. Then no norm gives anything else than before, and real models give the
  same bits in float32 (tests/test_proof_residual_exact.py). The weights and the config belong together after that;
* anything else is refused.

Matrices are scaled exactly, or the edit says how many elements lose bits. **Gains that one is added to are stored in
float32**, whatever they were stored in: w' = 2^-k (1 + w) - 1 lies near -1, where a narrower dtype is coarse. The plan
says by how much the gains change where float32 rounds them, and by how much once a loader casts them to float16 or
bfloat16, as `dtype=torch.float16` does.

## Example

A Gemma 3 whose residual stream may reach 206,000 (1.7 bits beyond 65504) gets k = 2: 68 norms, the embedding and the
final norm change, nothing else does, and nothing costs more at run time.

## Limits

* Refused for Gemma 3n with image or audio input: the soft tokens' last norm has no gain, so they cannot be scaled.
* A head that is the embedding needs the final norm's gain times 2^k; where that brings the final norm's own bound
  beyond 65504, the plan says that it is not certified. gate_proj cannot be scaled, for GELU is not linear.
* A layer norm divides by the variance, and a trace or an estimate gives the mean square: SigLIP's is too large where a
  position's mean is not near 0.
* AltUp multiplies the bound in every layer: there k needs `--calibration`.
* Weights times 2^-k can become subnormal in float16, the embedding first; the plan counts them (`fp16_subnormal`).
* An eps of the image encoder, or of Gemma 3n, does not shrink.
* Norm statistics of the mended model differ from the published ones, and a LoRA trained on one does not fit the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from gemma_doctor.architectures.base import Rescaling, SharedEps
from gemma_doctor.plans import Edit, Left, Reason, Scale, ScaleGain, SetConfig
from gemma_doctor.records import Exactness, Finding, Scalar
from gemma_doctor.repair.evidence.case import Answer, Case, Mend, Pass, left
from gemma_doctor.repair.evidence.certificate import certificate
from gemma_doctor.repair.evidence.powers import Powers
from gemma_doctor.repair.evidence.rescaled import MARGIN, Furthest, Ranges
from gemma_doctor.repair.evidence.scaling import SMALL, Note, RefusedError

__all__ = ["PASS"]

_RULE = "GD301"
_ALREADY = "What is done for the streams brings them under their limits as well"
_MEASURE = "A trace of the float32 reference (gemma-doctor verify --trace, then --calibration) may ask for less"


def plan(case: Case) -> Iterator[Answer]:
    """The edits for each residual stream, and for the values inside the layers, that can leave their limits."""
    by_stream = {finding.evidence.get("stream"): finding for finding in case.findings}
    if not case.exam.model.rescalings:
        yield from (left(finding, "What its family writes and reads is not declared") for finding in case.findings)
        return
    rescaler = _Rescaler(case, Ranges(case.exam, case.calibration), Powers(case, _RULE, PASS.name))
    streams = {value.stream for value in case.exam.model.values if value.stream}
    known = [one for one in case.exam.model.rescalings if one.name in streams]
    answers = [answer for one in known for answer in rescaler.stream(one, by_stream.pop(one.name, None))]
    note = by_stream.pop(None, None)
    others = [one for one in case.exam.model.rescalings if one.name not in streams]
    if note is not None:
        answers += rescaler.inside(others, note, [*by_stream.values()])
    yield from rescaler.certified(answers)
    for finding in by_stream.values():
        if note is None or _of(finding, others) is None:
            yield left(finding, "Nothing that reads this stream takes a factor out again")


def _of(finding: Finding, rescalings: list[Rescaling]) -> Rescaling | None:
    """The rescaling of the state that a finding names."""
    return next((one for one in rescalings if finding.evidence.get("value") in one.values), None)


@dataclass(slots=True)
class _Rescaler:
    """The rescalings of one checkpoint.

    Attributes:
        case: The case.
        ranges: Its bounds.
        powers: By how much each tensor is scaled so far.
        shrunk: Name of a value -> bits that the edits so far take from it.
        absorbed: Name of a norm -> bits that the edits so far leave it to take out.
    """

    case: Case
    ranges: Ranges
    powers: Powers
    shrunk: Counter[str] = field(default_factory=Counter)
    absorbed: Counter[str] = field(default_factory=Counter)

    def stream(self, rescaling: Rescaling, finding: Finding | None) -> Iterator[Answer]:
        """The edits of a residual stream with a finding, or with a measured peak beyond its limit."""
        furthest = self.ranges.furthest(rescaling, self.shrunk)
        measured = furthest is not None and furthest.basis == "measured" and furthest.exponent > 0
        if finding is None and not measured:
            return
        try:
            yield Mend(finding, tuple(self._edits(rescaling, furthest)))
        except RefusedError as refused:
            yield left(finding, str(refused)) if finding else Left(_RULE, "warning", None, str(refused))

    def inside(self, rescalings: list[Rescaling], note: Finding, streams: list[Finding]) -> list[Answer]:
        """The edits of the values inside the layers, all of them together or none: a proof needs them all.

        A trace asks for less than the bounds; where the streams are proved to fit, the bounds are worth meeting.

        Args:
            rescalings: What can be rescaled.
            note: The finding about all of these values.
            streams: Findings about streams that are rescaled with them.
        """
        answers: list[Answer] = []
        for by_bounds in (True, False) if self.case.calibration and self._streams_fit() else (False,):
            answers = self._inside(rescalings, note, streams, by_bounds=by_bounds)
            if any(isinstance(answer, Mend) for answer in answers):
                break
        return answers

    def _inside(
        self, rescalings: list[Rescaling], note: Finding, streams: list[Finding], *, by_bounds: bool
    ) -> list[Answer]:
        findings = {one.name: finding for finding in streams if (one := _of(finding, rescalings)) is not None}
        mends: dict[str, list[Edit]] = {name: [] for name in ("", *findings)}
        before = dict(self.powers.exponents), self.shrunk.copy(), self.absorbed.copy()
        try:
            for rescaling in rescalings:
                furthest = self.ranges.furthest(rescaling, self.shrunk, by_bounds=by_bounds)
                if furthest is not None and furthest.exponent:
                    mends[rescaling.name if rescaling.name in findings else ""] += self._edits(rescaling, furthest)
        except RefusedError as refused:
            self.powers.exponents, self.shrunk, self.absorbed = before
            why = f"All of them or none: a proof needs them all. {refused}"
            return [left(finding, why) for finding in (note, *findings.values())]
        measured = self.case.calibration is not None and not by_bounds
        why = "The measured peaks fit, with two bits to spare" if measured else _ALREADY
        return [
            Mend(finding, tuple(mends[name])) if mends[name] else left(finding, why)
            for name, finding in {"": note, **findings}.items()
        ]

    def _streams_fit(self) -> bool:
        """Whether every state of a residual stream is proved to fit once the edits so far are carried out."""
        return all(item.safe for item in self.ranges.analysis(self.powers.exponents).values if item.value.stream)

    def certified(self, answers: list[Answer]) -> Iterator[Answer]:
        """The answers, the first edit with what is proved once those that lose no element are carried out."""
        sound = [one for one in answers if isinstance(one, Mend) and all(e.exactness != "lossy" for e in one.edits)]
        for answer in answers:
            yield self._with_proof(answer, sound) if answer in sound[:1] else answer

    def _with_proof(self, mend: Mend, carried_out: list[Mend]) -> Mend:
        powers = Powers(self.case, _RULE, PASS.name)
        powers.noted(edit for one in carried_out for edit in one.edits if isinstance(edit, Scale | ScaleGain))
        proof = certificate(self.ranges.analysis(powers.exponents))
        edit, *others = mend.edits
        note = Note(edit.reason.message, edit.reason.evidence).plus(proof.text, proof.evidence)
        reason = Reason(edit.reason.rule, note.text, note.evidence)
        return Mend(mend.finding, (replace(edit, reason=reason), *others))

    def _edits(self, rescaling: Rescaling, furthest: Furthest | None) -> list[Edit]:
        """The edits of one rescaling.

        Raises:
            RefusedError: If it must not be done, or one of them is not sound.
        """
        k, note = self._exponent(rescaling, furthest)
        if rescaling.eps is not None and self._eps_is_felt(rescaling, k):
            return self._exactly(rescaling, rescaling.eps, k, note)
        note = self._eps(rescaling, k, note)
        edits = self._scaled(rescaling, k, note, "eps")
        self.absorbed.update({reader.norm: k for reader in rescaling.readers})
        return edits

    def _scaled(self, rescaling: Rescaling, k: int, note: Note, exactness: Exactness) -> list[Edit]:
        """The edits of the tensors; the first one has the note.

        Raises:
            RefusedError: If one of them is not sound.
        """
        wanted = dict.fromkeys(self._stored(rescaling), -k) | dict.fromkeys(rescaling.larger, k)
        edits: list[Scale | ScaleGain] = []
        for name, exponent in wanted.items():
            known = self.case.exam.model.expected.get(name)
            edit = self.powers.gain if known is not None and known.plus_one else self.powers.scale
            edits.append(edit(name, exponent, exactness, self._with(rescaling, k) if edits else note))
        self.powers.noted(edits)
        self.shrunk.update(dict.fromkeys((*rescaling.values, *rescaling.behind), k))
        return [*edits]

    def _with(self, rescaling: Rescaling, k: int) -> Note:
        return Note(f"Scaled with {self._disk(rescaling.smaller[0])}.", {"k": k})

    def _eps_is_felt(self, rescaling: Rescaling, k: int) -> bool:
        return any(not self.ranges.square(reader).change(reader.eps, k) <= SMALL for reader in rescaling.readers)

    def _exactly(self, rescaling: Rescaling, shared: SharedEps, k: int, note: Note) -> list[Edit]:
        """The edits of one rescaling where the eps shrinks as well, with all that any norm of that eps reads."""
        reader = rescaling.readers[0]
        eps, square = math.ldexp(reader.eps, -2 * k), self.ranges.square(reader)
        note = note.plus(
            f"The eps of the norms would be felt (at a mean square of {square.mean:.3g}, {square.where}, values would "
            f"change by {square.change(reader.eps, k):.2g} of their size), so {'.'.join(shared.path)} shrinks as well, "
            f"times 2^-{2 * k}, from {reader.eps:g} to {eps:.4g}, and so does what every other norm of that eps reads: "
            "no norm gives anything else than before.",
            {"eps": reader.eps, "eps_after": eps, "mean_square": square.mean},
        )
        together = replace(
            rescaling,
            smaller=(*rescaling.smaller, *shared.smaller),
            values=(*rescaling.values, *shared.values),
        )
        said = self._with(rescaling, k)
        reason = Reason(_RULE, said.text, said.evidence)
        config = SetConfig(path=shared.path, value=eps, pass_name=PASS.name, exactness="exact", reason=reason)
        return [*self._scaled(together, k, note, "exact"), config]

    def _stored(self, rescaling: Rescaling) -> Iterator[str]:
        """The tensors that shrink; a head that is stored although it is the embedding shrinks with it."""
        yield from rescaling.smaller
        head = self.case.exam.model.tied_head
        if head is not None and head[1] in rescaling.smaller and head[0] in self.case.exam.on_disk:
            yield head[0]

    def _exponent(self, rescaling: Rescaling, furthest: Furthest | None) -> tuple[int, Note]:
        if rescaling.refused is not None:
            raise RefusedError(f"It cannot be rescaled: {rescaling.refused}")
        if furthest is None:
            raise RefusedError(f"Nothing is proved of {rescaling.name}: a tensor is missing, or not finite")
        if not math.isfinite(furthest.reach):
            raise RefusedError(f"No number bounds {rescaling.name}. {_MEASURE}")
        k, name = furthest.exponent, furthest.item.value.name
        if not k:
            raise RefusedError(f"It reaches {furthest.reach:.4g} in the trace, at {name}: {MARGIN:g} times that fits")
        kind = "the proved bound" if furthest.basis == "proved" else "the trace's peak, or a bound from such peaks"
        left_over = math.ldexp(furthest.item.value.limit / furthest.reach, k)
        text = (
            f"{rescaling.name} can reach {furthest.reach:.4g} at {name} ({kind}), and may reach {furthest.room:g}; "
            f"times 2^-{k} it fits, {math.log2(left_over):.1f} bits below {furthest.item.value.limit:g}."
        )
        evidence: dict[str, Scalar] = {
            "reach": furthest.reach,
            "basis": furthest.basis,
            "limit": furthest.item.value.limit,
            "k": k,
            "margin_bits": math.log2(left_over),
        }
        return k, Note(text[0].upper() + text[1:], evidence)

    def _eps(self, rescaling: Rescaling, k: int, note: Note) -> Note:
        """The norms that take the factor out, up to their eps."""
        for reader in rescaling.readers:
            square = self.ranges.square(reader)
            change = square.change(reader.eps, k + self.absorbed[reader.norm])
            norm = reader.norm.removesuffix(".weight")
            at = f"a mean square of {square.mean:.3g} ({square.where})"
            if not change <= SMALL:
                raise RefusedError(
                    f"{note.text} But then the eps {reader.eps:g} of the norm '{norm}' is felt: at {at}, values change "
                    f"by {change:.2g} of their size; {SMALL:.2g} is allowed. {_MEASURE}"
                )
            note = note.plus(
                f"The eps of the norm '{norm}', which does not shrink, changes values by at most {change:.1e} of their "
                f"size from {at} upwards.",
                {"eps": reader.eps, "mean_square": square.mean, "relative_change": change},
            )
        return note

    def _disk(self, name: str) -> str:
        return self.case.exam.disk_name(name)


PASS = Pass("rescale-residual", "eps", (_RULE,), plan)
