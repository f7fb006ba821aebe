"""What cannot be proved says why, shared expressions are proved once, and a sound encoder is proved throughout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import architecture_data
import checkpoints
import numpy as np
import pytest
from networks import stats_of

from gemma_doctor.architectures import identify
from gemma_doctor.architectures.base import Conv, Norm
from gemma_doctor.architectures.bounds import Bound, Proof, Prover, Unproven, bound, output_bound
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Joined,
    Linear,
    Pooled,
    Repeated,
    Scaled,
    Sum,
    Unbounded,
    Within,
)
from gemma_doctor.tensors import TensorStats


def _bound(proof: Proof) -> Bound:
    assert isinstance(proof, Bound)
    return proof


def _why(proof: Proof) -> str:
    assert isinstance(proof, Unproven)
    return proof.why


def test_what_is_unbounded_or_unmeasured_is_unproven() -> None:
    stats = {"gain": stats_of(np.ones(4)), "vector": stats_of(np.ones(4))}
    normed = AfterNorm("gain", 4)
    assert _why(bound(Unbounded("grows with time"), stats)) == "grows with time"
    assert _why(bound(AfterNorm("absent", 4), stats)) == "absent was not measured"
    assert _why(bound(Linear("vector", normed), stats)) == "vector has no row norms"
    for compound in (
        Sum((normed, AfterNorm("absent", 4))),
        Joined((AfterNorm("absent", 4), normed)),
        Scaled("absent", normed),
        Scaled("gain", AfterNorm("absent", 4)),
        Linear("absent", normed),
        Linear("gain", AfterNorm("absent", 4)),
        Pooled(AfterNorm("absent", 4)),
        Repeated(AfterNorm("absent", 4), 3),
    ):
        assert _why(bound(compound, stats)) == "absent was not measured"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_proves_nothing(value: float) -> None:
    gain = np.array([1.0, value])
    assert _why(bound(AfterNorm("gain", 2), {"gain": stats_of(gain)})) == "gain holds NaN or infinity"
    conv = Conv(Within(1.0, 2, "pixels"), 1, depthwise=False)
    assert _why(output_bound(conv, stats_of(gain.reshape(1, 2, 1, 1)), {})) == "the weight holds NaN or infinity"


def test_an_empty_tensor_proves_nothing() -> None:
    assert _why(bound(AfterNorm("gain", 2), {"gain": TensorStats()})) == "gain has no element"


def test_a_bias_that_was_not_measured_leaves_the_output_unproven() -> None:
    conv = Conv(Within(1.0, 2, "pixels"), 1, depthwise=False, bias="bias")
    weight = stats_of(np.ones((1, 2, 1, 1)))
    assert _why(output_bound(conv, weight, {})) == "bias was not measured"
    assert _bound(output_bound(replace(conv, bias=None), weight, {})).peak == 2.0


def test_a_zero_weight_silences_a_bound_beyond_float64() -> None:
    big, zero = stats_of(np.full(2, 1e200)), stats_of(np.zeros((1, 2, 1, 1)))
    beyond = Scaled("big", AfterNorm("big", 2))
    assert _bound(bound(beyond, {"big": big})).peak == math.inf
    silenced = _bound(bound(Linear("zero", beyond), {"big": big, "zero": zero}))
    assert (silenced.peak, silenced.norm) == (0.0, 0.0)


def test_squares_beyond_float64_leave_the_norm_open() -> None:
    weight, bias = stats_of(np.full((1, 2, 1, 1), 1e200)), stats_of(np.full(1, 1e200))
    conv = Conv(Within(1.0, 2, "pixels"), 1, depthwise=False, bias="bias")
    proof = _bound(output_bound(conv, weight, {"bias": bias}))
    assert proof.peak == pytest.approx(3e200)
    assert proof.norm == math.inf
    assert _bound(output_bound(conv, stats_of(np.ones((1, 2, 1, 1))), {"bias": bias})).norm == math.inf


class Counting(Mapping[str, TensorStats]):
    """The same record for every name, with the names that were asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> TensorStats:
        self.asked.append(name)
        return stats_of(np.ones((2, 2)))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def test_shared_expressions_are_proved_once() -> None:
    model = identify(architecture_data.config("gemma-3n-E4B"))
    stats = Counting(model.expected)
    prover = Prover(stats)
    proofs = [prover.bound(conv.source) for conv in model.convs.values()]
    assert sum(isinstance(proof, Unproven) for proof in proofs) == 1  # behind the cumulative norm of the audio tower
    assert len(stats.asked) == len(set(stats.asked))


def test_a_healthy_encoder_is_proved_throughout() -> None:
    config = checkpoints.tiny_gemma3n_config()
    model = identify(config)
    tensors = checkpoints.healthy(config)
    stats = {name: stats_of(tensor.astype(np.float64)) for name, tensor in tensors.items()}
    prover = Prover(stats)
    outputs = {name: prover.output(conv, stats[name]) for name, conv in model.convs.items()}
    unproven = [name for name, proof in outputs.items() if isinstance(proof, Unproven)]
    assert unproven == ["model.audio_tower.subsample_conv_projection.conv_1.conv.weight"]
    assert all(math.isfinite(proof.peak) for proof in outputs.values() if isinstance(proof, Bound))


def test_the_source_of_a_convolution_explains_its_bound() -> None:
    stats = {"bn": stats_of(np.full(4, 2.5)), "weight": stats_of(np.ones((1, 4, 1, 1)))}
    conv = Conv(AfterNorm("bn", 4), 1, depthwise=False, norm=Norm("next", 1e-6, "input"))
    proof = output_bound(conv, stats["weight"], stats)
    assert proof == Bound(10.0, 10.0, "sqrt(1) * ||x||_2 5 * max||W_j||_2 2")
    assert _bound(bound(conv.source, stats)).why == "RMS norm bn: sqrt(4) * max|gain| 2.5"
