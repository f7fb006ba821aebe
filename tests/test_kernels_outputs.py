"""Statistics of tensors in memory equal the float64 oracle, by the compiled loops, by torch and by the fused kernel.

The fused kernel runs in Triton's interpreter (see conftest.py); benchmarks/gpu_kernels.py compares on a GPU.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import DTYPES, Tensor, agree, edges, item_size, packed, small

from gemma_doctor.kernels import outputs, outputs_fused, outputs_torch, triton_outputs
from gemma_doctor.kernels.devices import runs_triton
from gemma_doctor.kernels.guards import norms, norms_torch
from gemma_doctor.kernels.outputs import launch
from gemma_doctor.kernels.pieces import Grain, cut
from gemma_doctor.tensors import TensorStats

Measure = Callable[[Sequence[torch.Tensor]], list[TensorStats]]

NAMES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
FUSED = ("F16", "BF16", "F32")


interpreted = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # what the interpreter's NumPy says of NaN and overflow


def by_torch(tensors: Sequence[torch.Tensor]) -> list[TensorStats]:
    return outputs_torch.read(outputs_torch.enqueue(tensors), [tensor.numel() for tensor in tensors])


def by_triton(tensors: Sequence[torch.Tensor]) -> list[TensorStats]:
    return outputs_fused.read(outputs_fused.enqueue(tensors), [tensor.numel() for tensor in tensors])


def in_torch(raw: bytes, dtype: str, skipped: int = 0) -> torch.Tensor:
    """The elements in memory that starts so many elements after a multiple of 64 bytes; shape (elements,)."""
    data = torch.empty(skipped * item_size(dtype) + len(raw), dtype=torch.uint8)
    data[skipped * item_size(dtype) :] = torch.from_numpy(np.frombuffer(raw or b"\0", np.uint8).copy())[: len(raw)]
    return data.view(NAMES[dtype])[skipped:]


def check(measure: Measure, cases: Sequence[tuple[str, bytes, int]]) -> None:
    """All cases (dtype, bytes, elements before them) in one call against the oracle."""
    found = measure([in_torch(raw, dtype, skipped) for dtype, raw, skipped in cases])
    for stats, (dtype, raw, _) in zip(found, cases, strict=True):
        agree(stats, oracle.measure(raw, dtype, (len(raw) // item_size(dtype),)))


def telling(dtype: str) -> list[bytes]:
    """Tensors of few elements or of one kind, each with something to find."""
    alone = [packed(dtype, [code]) for code in edges(dtype)]
    zeros = packed(dtype, [0, 1 << 8 * item_size(dtype) - 1]) * 40
    return [b"", zeros, b"".join(alone), *alone]


def wide(dtype: str, length: int, scale: float = 1.0) -> bytes:
    """Normally distributed elements."""
    values = torch.randn(length, generator=torch.Generator().manual_seed(length)) * scale
    return bytes(values.to(NAMES[dtype]).view(torch.uint8).numpy())


# Every way to the figures


@pytest.mark.parametrize("measure", [by_torch, lambda tensors: launch(tensors).stats()], ids=["torch", "launch"])
@pytest.mark.parametrize("dtype", NAMES)
def test_each_edge_alone_and_all_together(measure: Measure, dtype: str) -> None:
    check(measure, [(dtype, raw, 0) for raw in telling(dtype)])


@pytest.mark.parametrize("measure", [by_torch, lambda tensors: launch(tensors).stats()], ids=["torch", "launch"])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_all_codes_of_16_bits(measure: Measure, dtype: str) -> None:
    check(measure, [(dtype, np.arange(1 << 16, dtype="<u2").tobytes(), 0)])


@interpreted
@pytest.mark.parametrize("way", ["launch", "torch", "fused"])
def test_what_is_not_finite_is_counted_without_records(way: str) -> None:
    tensors = [
        torch.tensor(values, dtype=torch.float16) for values in ([1.0], [math.nan] * 2, [math.inf, -math.inf, 1])
    ]
    found = {
        "launch": lambda: launch(tensors).nonfinite(),
        "torch": lambda: outputs_torch.nonfinite(outputs_torch.enqueue(tensors)),
        "fused": lambda: outputs_fused.nonfinite(outputs_fused.enqueue(tensors)),
    }[way]()
    assert found == [0, 2, 2]


@given(st.lists(small(tuple(NAMES)), min_size=1, max_size=3))
def test_any_bits(tensors: list[Tensor]) -> None:
    cases = [(tensor.dtype, tensor.raw, 0) for tensor in tensors]
    check(lambda given: launch(given).stats(), cases)
    check(by_torch, cases)


@interpreted
@pytest.mark.parametrize("dtype", FUSED)
def test_the_fused_kernel_on_each_edge_alone_and_all_together(dtype: str) -> None:
    check(by_triton, [(dtype, raw, 0) for raw in telling(dtype)[:: 1 if dtype == "F16" else 3]])


@interpreted
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_the_fused_kernel_on_all_codes_of_16_bits(dtype: str) -> None:
    codes = np.arange(1 << 16, dtype="<u2")
    kept = codes & 0x7FFF < (0x7C00 if dtype == "F16" else 0x4780)  # nothing here calls for a second look
    check(by_triton, [(dtype, codes.tobytes(), 0), (dtype, codes[kept].tobytes(), 0)])


@interpreted
def test_dtypes_lengths_and_addresses_in_one_launch() -> None:
    cases = [(dtype, wide(dtype, length), length % 9) for dtype in FUSED for length in (1, 8, 257, 4096, 8191)]
    check(by_triton, cases)


@interpreted
@pytest.mark.parametrize("lonely", [1e5, -1e5, 65520.0, -65520.0])
def test_one_value_beyond_float16_is_seen_on_either_side(lonely: float) -> None:
    values = np.array([1.0, lonely, -1.0], "<f4")
    check(by_triton, [("F32", values.tobytes(), 0)])


@interpreted
@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-60, 2.0**-20, 2.0**100])
def test_squares_that_float32_does_not_hold(scale: float) -> None:
    check(by_triton, [(dtype, wide(dtype, 3000, scale), 0) for dtype in ("BF16", "F32")])


@interpreted
def test_squares_that_float32_does_not_hold_beside_one_that_it_does() -> None:
    values = np.full(3000, 1.3 * 2.0**-74, "<f4")
    values[7] = 2.0**-62
    check(by_triton, [("F32", values.tobytes(), 0)])


@interpreted
def test_a_tensor_of_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs_fused, "_PROGRAMS", 3)
    spoilt = bytearray(wide("BF16", 50_001))
    spoilt[60_000:60_002] = (0x7F80).to_bytes(2, "little")
    check(by_triton, [("BF16", bytes(spoilt), 1), ("BF16", wide("BF16", 70_000), 0)])


@interpreted
@pytest.mark.parametrize("dtype", FUSED)
def test_the_fused_kernel_finds_what_stands_anywhere_in_a_piece(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """In whole tiles and in the rest, in either half of a word; alone, and where a NaN asks for a second look."""
    monkeypatch.setattr(outputs_fused, "_TILE", 64)
    monkeypatch.setattr(outputs_fused, "_PROGRAMS", 1)
    tile = 64 // item_size(dtype)
    places = [0, 1, 4 * tile - 1, 4 * tile, 8 * tile, 8 * tile + 1, 9 * tile + 4]
    cases = []
    for shift in range(len(places)):
        values = torch.linspace(1, 2, 9 * tile + 5)
        kinds = torch.tensor([-100, 100, 0.0, 2.0**-14, 2.0**-15, 2.0**-24, 2.0**-26])
        values[places[shift:] + places[:shift]] = kinds
        again = values.clone()
        again[2 * tile] = math.nan
        cases += [(dtype, bytes(one.to(NAMES[dtype]).view(torch.uint8).numpy()), 0) for one in (values, again)]
    check(by_triton, cases)


def launches(tensors: Sequence[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> list[tuple[npt.NDArray[Any], Any]]:
    """The pieces of each launch, shape (pieces, 3), and its other arguments; nothing is measured."""
    scan = mock.MagicMock()
    monkeypatch.setattr(triton_outputs, "scan", scan)
    outputs_fused.enqueue(tensors)
    grids = [call.args[0][0] for call in scan.__getitem__.call_args_list]
    calls = scan.__getitem__.return_value.call_args_list
    return [
        (call.args[0][: 3 * grid].view(-1, 3).numpy(), call.kwargs) for grid, call in zip(grids, calls, strict=True)
    ]


def test_what_a_gpu_reads_whole_begins_where_its_widest_load_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses another address, which an interpreter does not; 16 bytes for each thread of a warp and loads of 4."""
    monkeypatch.setattr(outputs_fused, "_PROGRAMS", 1)
    ends = [torch.empty(600_000, dtype=NAMES[dtype])[skipped:] for dtype in FUSED for skipped in range(9)]
    found = launches(ends, monkeypatch)
    assert [arguments["packed"] for _, arguments in found] == [True, True, False]
    for pieces, arguments in found:
        size = 2 if arguments["packed"] else 4
        assert arguments["words"] * 4 == arguments["num_warps"] * 32 * 16
        assert ((pieces[:, 0] % 16 == 0) | (pieces[:, 1] * size < 16)).all()
        squares = pieces[:, 1].max() * size / (4 * arguments["words"])  # that a lane adds in float32
        assert squares > 100
        assert squares * 2.0**-24 <= 2.0**-17  # what the room promises of a sum


def test_the_kernel_is_launched_on_the_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not on the one that happens to be current."""
    scan, current = mock.MagicMock(), []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        current.append(tensor.device)
        yield
        current.clear()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(triton_outputs, "scan", scan)
    scan.__getitem__.return_value.side_effect = lambda *_, **__: launched.extend(current)
    launched: list[torch.device] = []
    outputs_fused.enqueue([torch.ones(3), torch.ones(3).half()])
    assert launched == [torch.device("cpu")] * 2


@interpreted
def test_what_memory_held_before_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *size, **options: torch.full(size, 77, **options))
    (found,) = by_triton([torch.ones(3)])
    assert (found.nan, found.zeros, found.minimum, found.maximum) == (0, 0, 1.0, 1.0)


@interpreted
@pytest.mark.parametrize("capable", [True, False])
def test_a_gpu_gets_the_kernel_for_what_it_measures_and_reductions_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, *, capable: bool
) -> None:
    """On the CPU, which has the kernel's interpreter: in one call every dtype, in an order that mixes both ways."""
    ways = [mock.Mock(wraps=way.enqueue) for way in (outputs_fused, outputs_torch)]
    monkeypatch.setattr(outputs_fused, "enqueue", ways[0])
    monkeypatch.setattr(outputs_torch, "enqueue", ways[1])
    monkeypatch.setattr(outputs, "runs_triton", lambda _: capable)
    cases = [(dtype, wide(dtype, 300, 2.0**-3), 0) for dtype in (*NAMES, *NAMES)]
    for dtypes in (tuple(NAMES), FUSED, ("F64",)):
        chosen = [case for case in cases if case[0] in dtypes]
        check(lambda tensors: outputs._on_gpu(list(tensors), {one.dtype for one in tensors}).stats(), chosen)  # noqa: SLF001
    mixed = [torch.tensor([math.nan] * count, dtype=dtype) for count, dtype in enumerate(reversed(NAMES.values()))]
    assert outputs._on_gpu(mixed, {*NAMES.values()}).nonfinite() == [*range(len(NAMES))]  # noqa: SLF001
    fused = 5 * len(FUSED) if capable else 0
    measured = [sum(len(call.args[0]) for call in way.call_args_list) for way in ways]
    assert measured == [fused, 3 * len(NAMES) + 2 * len(FUSED) + 2 - fused]


ITEMSIZES = np.array([2, 2, 4])
VECTOR, STEP, MOST = 16, 64, 256

Places = list[tuple[int, int, int]]
"""Address in elements, elements and dtype of tensors."""


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 700), st.integers(0, 2))), st.integers(1, 9))
def test_pieces_are_the_tensors_whole_and_once(places: Places, programs: int) -> None:
    kinds = np.array([kind for *_, kind in places], np.int64)
    addresses = np.array([place for place, *_ in places], np.int64) * ITEMSIZES[kinds]
    sizes = np.array([size for _, size, _ in places], np.int64)
    pieces, starts = cut(addresses, sizes, kinds, ITEMSIZES, Grain(VECTOR, programs, STEP, MOST))
    assert starts[0] == 0
    assert starts[-1] == len(pieces)
    for kind, itemsize in enumerate(ITEMSIZES):
        assert {*kinds[pieces[starts[kind] : starts[kind + 1], 2]]} <= {kind}
        for tensor in np.flatnonzero(kinds == kind):
            mine = pieces[pieces[:, 2] == tensor]
            ends = mine[:, 0] + mine[:, 1] * itemsize
            assert [addresses[tensor], *ends] == [*mine[:, 0], addresses[tensor] + sizes[tensor] * itemsize]
            assert not (mine[1:, 0] % VECTOR).any()
            assert ((mine[:, 1] > 0) & (mine[:, 1] * itemsize <= MOST)).all()
            assert mine[0, 1] * itemsize < VECTOR or not addresses[tensor] % VECTOR if len(mine) else not sizes[tensor]


def test_pieces_grow_with_the_work_up_to_the_most() -> None:
    def longest(size: int) -> int:
        one = np.array([0]), np.array([size]), np.array([2]), ITEMSIZES
        return int(cut(*one, Grain(VECTOR, 3, STEP, MOST))[0][:, 1].max()) * 4

    assert [longest(size) for size in (4, 16, 40, 60, 100, 1000)] == [16, 64, 64, 128, 192, 256]


# What launch makes of tensors


def test_any_strides_and_shapes_are_measured() -> None:
    base = torch.randn((2, 6, 5, 4), generator=torch.Generator().manual_seed(0))
    views = [
        base.permute(3, 0, 2, 1),
        base.to(memory_format=torch.channels_last),
        base[:, 1:3],
        base[..., ::2],
        base[:, :1, :, :1].expand(2, 3, 5, 2),
        base[0, 0, :1, 0].expand(3),
        base[0, 0, 0].unfold(0, 2, 1),
        base[0, 0, 0, 0],
        torch.empty((0, 4)).T,
        torch._neg_view(base),  # noqa: SLF001  # as `.conj().imag` makes it
    ]
    for view, stats in zip(views, launch(views).stats(), strict=True):
        agree(stats, oracle.measure(view.contiguous().resolve_neg().numpy(), "F32", (view.numel(),)))


def test_dense_tensors_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = torch.randn((2, 6, 5, 4)).permute(3, 0, 2, 1)
    alone = torch.randn((4, 5)).as_strided((5, 1, 4), (1, 7, 5))  # the step of one item means nothing
    gaps = dense[:2]
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *_: pytest.fail("copied"))
    launch([dense, alone])
    with pytest.raises(pytest.fail.Exception, match="copied"):
        launch([gaps])


def on_the_cpu_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, *, capable: bool) -> None:
    """The CPU has the kernel's interpreter, and torch's reductions."""
    monkeypatch.setattr(outputs, "runs_triton", lambda _: capable)
    monkeypatch.setattr(outputs, "_on_cpu", lambda given: outputs._on_gpu(given, {one.dtype for one in given}))  # noqa: SLF001


@interpreted
@pytest.mark.parametrize("way", ["compiled loops", "fused kernel", "reductions"])
def test_later_changes_and_drops_are_not_seen(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way != "compiled loops":
        on_the_cpu_as_on_a_gpu(monkeypatch, capable=way == "fused kernel")
    tensor = torch.ones(5, requires_grad=True)
    held = weakref.ref(tensor)
    launched = launch([tensor])
    with torch.no_grad():
        tensor.zero_()
    del tensor
    assert held() is None
    assert launched.stats()[0].zeros == 0
    assert launched.stats() is launched.stats()  # each event of a trace asks


def test_nothing_has_no_figures() -> None:
    assert launch([]).stats() == []
    assert launch([torch.empty(0)]).stats() == [TensorStats()]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"{dtype} cannot be measured"):
        launch([torch.ones(3), torch.ones(3, dtype=dtype)])


def test_tensors_of_two_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="not on cpu, meta"):
        launch([torch.ones(3), torch.ones(3, device="meta")])


@pytest.mark.parametrize("capability", [(7, 5), (9, 0)])
def test_without_triton_a_gpu_gets_plain_torch(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """By itself: nothing that needs Triton is imported."""
    monkeypatch.setitem(sys.modules, "triton", None)  # as where it is not installed
    for name in [name for name in sys.modules if re.search(r"gemma_doctor\.kernels\..*(fused|tiles|triton)", name)]:
        room, _, module = name.rpartition(".")
        monkeypatch.delattr(sys.modules[room], module)
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    gpu = torch.device("cuda", 0)
    for chooser in (outputs, norms):
        monkeypatch.setattr(chooser, "runs_triton", lambda _: runs_triton.__wrapped__(gpu))
    monkeypatch.setattr(norms, "_fused", norms._fused.__wrapped__)  # noqa: SLF001
    x = torch.linspace(-3, 3, 48).half().view(4, 12)
    for name in ("outputs_fused", "guards.norms_fused"):
        with pytest.raises(ImportError):
            importlib.import_module(f"gemma_doctor.kernels.{name}")
    assert outputs._on_gpu([x], {x.dtype}).stats() == by_torch([x])  # noqa: SLF001
    assert norms._way(x, norms.Form(1e-6, -1, x.dtype)) is norms_torch  # noqa: SLF001


@pytest.mark.parametrize(("capability", "triton"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_old_gpus_get_plain_torch(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], *, triton: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert runs_triton.__wrapped__(torch.device("cuda", 0)) is triton
    assert not runs_triton.__wrapped__(torch.device("cpu"))


def test_the_oracle_knows_them_all() -> None:
    assert {*NAMES} < {*DTYPES}
