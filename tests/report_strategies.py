"""Any report at all, for laws that hold for every one: numbers at the edges, and every string a stranger's."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import get_args

from hypothesis import strategies as st
from sample_reports import report

from gemma_doctor.choices import LOADERS, MODALITIES, MODES, SEVERITIES, TARGET_DTYPES
from gemma_doctor.records import Coverage, Finding, Proof, Repair, Report, Skipped, Suppressed
from gemma_doctor.tensors import MeasuredTensor, TensorInfo, TensorStats
from gemma_doctor.verifications import (
    Activation,
    Drift,
    FailingOp,
    LossScales,
    LossScaleTrial,
    ModuleDrift,
    Operand,
    Phase,
    Run,
    Verification,
)

counts = st.integers(0, 2**63)
magnitudes = st.none() | st.floats(0, allow_nan=False)
extremes = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1)
texts = st.text(st.characters(exclude_categories=()), max_size=8)


@st.composite
def figures(draw: st.DrawFn, count: int) -> TensorStats:
    """A finished record, numbers at the edges of float64 included."""
    nan = draw(st.integers(0, count))
    inf = draw(st.integers(0, count - nan))
    mean_square = draw(st.floats(0, allow_nan=False, allow_infinity=False))
    return TensorStats(
        count=count,
        nan=nan,
        inf=inf,
        zeros=draw(counts),
        fp16_overflow=draw(counts),
        fp16_subnormal=draw(counts),
        fp16_underflow=draw(counts),
        minimum=draw(extremes),
        maximum=draw(extremes),
        squares=draw(st.sampled_from([None, Fraction(mean_square) * (count - nan - inf)])),
        zero_rows=draw(counts),
        row_l1_max=draw(magnitudes),
        row_squares_max=draw(magnitudes),
    )


@st.composite
def tensors(draw: st.DrawFn) -> MeasuredTensor:
    shape = tuple(draw(st.lists(st.integers(0, 99), max_size=4)))
    start = draw(counts)
    info = TensorInfo(draw(texts), draw(texts), shape, draw(texts), start, start + draw(counts))
    limit = draw(st.none() | st.floats(1e-300, 65504))
    return MeasuredTensor(info, draw(figures(math.prod(shape))), draw(st.sampled_from(["conv", "other"])), limit)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
findings = st.builds(
    Finding,
    st.from_regex(r"GD[0-9]{3}", fullmatch=True),
    texts,
    st.sampled_from(SEVERITIES),
    texts,
    st.none() | texts,
    st.none() | texts,
    st.dictionaries(texts, scalars, max_size=3),
    st.sampled_from([None, Repair("rescale-conv", "eps")]),
)
finite = st.floats(allow_nan=False, allow_infinity=False)
sizes = st.floats(0, allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1)
shapes = st.lists(st.integers(0, 99), max_size=4).map(tuple)
joined = st.integers(0, 2**20).flatmap(figures)
activations = st.builds(
    Activation,
    run=st.sampled_from(MODALITIES),
    phase=st.sampled_from(get_args(Phase)),
    module=texts,
    op=texts,
    step=counts,
    calls=counts,
    dtype=texts,
    shape=shapes,
    stats=joined,
)
failures = st.builds(
    FailingOp,
    activation=activations,
    operands=st.lists(st.builds(Operand, texts, texts, shapes, joined), max_size=2).map(tuple),
    config=st.dictionaries(texts, scalars, max_size=2),
    reference_absmax=st.none() | sizes,
)
drifts = st.builds(Drift, st.none() | finite, shares, st.none() | sizes)
trials = st.builds(
    LossScaleTrial,
    st.floats(0, exclude_min=True, allow_infinity=False),
    st.sampled_from(["sound", "overflow", "underflow"]),
    st.none() | texts,
    counts,
)
module_drifts = st.builds(
    ModuleDrift,
    texts,
    texts,
    st.none() | sizes,
    counts,
    st.none() | sizes,
    st.none() | sizes,
    st.none() | sizes,
    shares,
    st.none() | sizes,
)
runs = st.builds(
    Run,
    modality=st.sampled_from(MODALITIES),
    inputs=texts,
    operations=counts,
    seconds=sizes,
    loss=st.none() | finite,
    reference_loss=st.none() | finite,
    drift=st.none() | drifts,
    bfloat16_drift=st.none() | drifts,
    against_drift=st.none() | drifts,
    modules=st.lists(module_drifts, max_size=2).map(tuple),
    first_failure=st.none() | failures,
    loss_scales=st.none() | st.builds(LossScales, st.lists(trials, max_size=3).map(tuple)),
)
verifications = st.builds(
    Verification,
    device=texts,
    mode=st.sampled_from(MODES),
    backward=st.booleans(),
    guarded=st.booleans(),
    frozen=st.lists(texts, max_size=2).map(tuple),
    runs=st.lists(runs, max_size=2).map(tuple),
    imitated=st.lists(texts, max_size=2).map(tuple),
    not_imitated=st.lists(texts, max_size=2).map(tuple),
    against=st.none() | texts,
    peak_memory=st.none() | counts,
)
reports = st.builds(
    Report,
    version=texts,
    source=st.just(report().source),
    target_dtype=st.sampled_from(TARGET_DTYPES),
    loader=st.sampled_from(LOADERS),
    coverage=st.builds(Coverage, counts, counts, st.lists(st.builds(Skipped, texts, texts), max_size=2).map(tuple)),
    findings=st.lists(findings, max_size=3).map(tuple),
    tensors=st.lists(tensors(), max_size=3).map(tuple),
    seconds=st.floats(0, 1e6),
    suppressed=st.lists(
        st.builds(Suppressed, findings, st.sampled_from(["allow", "baseline"]), texts, texts), max_size=2
    ).map(tuple),
    activations=st.lists(activations, max_size=2).map(tuple),
    verification=st.none() | verifications,
    remarks=st.lists(texts, max_size=2).map(tuple),
    proof=st.none() | st.builds(Proof, counts, counts, st.lists(texts, max_size=2).map(tuple)),
)
