"""What a plan may say of a float16 run once it is carried out: certified whatever the input, or what is still open."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_doctor.architectures.ranges import ASSUMPTIONS, BoundedValue, RangeAnalysis
from gemma_doctor.records import Scalar
from gemma_doctor.repair.evidence.scaling import Note

__all__ = ["certificate"]


def certificate(analysis: RangeAnalysis) -> Note:
    """What is proved of a model, in words and in numbers.

    Args:
        analysis: The bounds of its values, the plan's edits carried out.
    """
    total, open_ones = len(analysis.written), [item for item in analysis.written if not item.safe]
    evidence: dict[str, Scalar] = {
        "values": total,
        "proved_safe": total - len(open_ones),
        "certified": analysis.certified,
        "eager_scores": len(analysis.scores),
        "eager_scores_safe": sum(item.safe for item in analysis.scores),
    }
    if analysis.certified:
        return Note(
            f"Certified: all {total:,} values of a float16 run then fit, so that the model cannot overflow in the "
            f"forward pass, whatever the input. Assumed: {'; '.join(ASSUMPTIONS)}.{_eager(analysis.scores)}",
            evidence,
        )
    first = open_ones[0]
    bound = "nothing is proved" if first.bound is None else f"the bound is {first.bound:.4g}"
    return Note(
        f"Then {total - len(open_ones):,} of {total:,} values of a float16 run are proved to fit. Not certified: "
        f"the first of {len(open_ones):,} others is {first.value.name}, of which {bound}; the limit is "
        f"{first.value.limit:g}.",
        evidence,
    )


def _eager(scores: Sequence[BoundedValue]) -> str:
    """What the certificate says of eager attention, where it does not hold for that."""
    beyond = [item for item in scores if not item.safe]
    if not beyond:
        return ""
    return (
        f" It does not hold for eager attention, of whose {len(scores):,} scores {len(beyond):,} are not proved, "
        f"{beyond[0].value.name} first."
    )
