"""GD501 to GD503 and GD201 on GGUF: sick and sound files built in code, and inventories of published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ggufs
import numpy as np
import pytest
from checkpoints import healthy, tiny_gemma3n_text_config, write
from command import call
from gguf.constants import GGUFValueType

import gemma_doctor
from gemma_doctor.architectures import gguf
from gemma_doctor.checkpoint.gguf_values import Value
from gemma_doctor.records import Finding, Repair

UINT32, FLOAT32 = GGUFValueType.UINT32, GGUFValueType.FLOAT32


def found(path: Path, rule: str) -> list[Finding]:
    return [finding for finding in gemma_doctor.scan(path).findings if finding.rule == rule]


def test_gd501_a_float_is_found_and_its_repair_named(tmp_path: Path) -> None:
    (finding,) = found(ggufs.gemma3n(tmp_path / "m.gguf", (FLOAT32, 10.0)), "GD501")
    assert (finding.severity, finding.tensor, finding.file) == ("warning", None, "m.gguf")
    assert finding.repair == Repair("gguf-uint32", "exact")
    assert finding.evidence == {"key": ggufs.SHARED_KV, "type": "FLOAT32", "expected": "UINT32", "value": 10.0}
    assert finding.message.startswith(f"{ggufs.SHARED_KV} is stored as FLOAT32 (10), not as UINT32")


def test_gd501_uint32_is_sound(tmp_path: Path) -> None:
    assert found(ggufs.gemma3n(tmp_path / "m.gguf", (UINT32, 10)), "GD501") == []


@pytest.mark.parametrize(
    ("kind", "number", "mendable"),
    [
        (GGUFValueType.INT32, 10, True),
        (GGUFValueType.UINT64, 10, False),
        (FLOAT32, 0.0, True),
        (GGUFValueType.FLOAT64, 10.0, False),
    ],
)
def test_gd501_only_four_bytes_that_hold_a_whole_number_can_be_mended(
    tmp_path: Path, kind: GGUFValueType, number: float, *, mendable: bool
) -> None:
    (finding,) = found(ggufs.gemma3n(tmp_path / "m.gguf", (kind, number)), "GD501")
    assert (finding.repair is not None) == mendable


@pytest.mark.parametrize(
    ("kind", "number"), [(FLOAT32, 9.5), (FLOAT32, float("nan")), (FLOAT32, 1e9), (UINT32, 31), (FLOAT32, -1.0)]
)
def test_a_number_of_layers_that_cannot_be_is_one_sentence(tmp_path: Path, kind: GGUFValueType, number: float) -> None:
    done = call("scan", ggufs.gemma3n(tmp_path / "m.gguf", (kind, number)))
    assert done.code == 2
    assert f"{ggufs.SHARED_KV} = " in done.err
    assert "a whole number from 0 to 30" in done.err.replace("\n", " ")


def test_gd502_the_rows_of_published_files_differ(tmp_path: Path) -> None:
    (finding,) = found(ggufs.gemma3n(tmp_path / "m.gguf", (UINT32, 10)), "GD502")
    assert (finding.severity, finding.tensor) == ("note", "token_embd.weight")
    assert finding.evidence == {"rows": 5, "per_layer_rows": 4}
    published = {name: extents for name, _, extents in ggufs.inventory("gemma-3n-E2B")["tensors"]}
    assert published["token_embd.weight"][1] - published["per_layer_token_embd.weight"][1] == 256


def table(rows: int) -> ggufs.Packed:
    return "F16", np.ones((rows, 32), np.float16)


@pytest.mark.parametrize(
    "tables",
    [
        {"token_embd.weight": table(4), "per_layer_token_embd.weight": table(4)},
        {"token_embd.weight": table(4)},
        {"per_layer_token_embd.weight": table(4)},
    ],
)
def test_gd502_equal_rows_or_one_table_alone_are_sound(tmp_path: Path, tables: dict[str, ggufs.Packed]) -> None:
    assert found(ggufs.write(tmp_path / "m.gguf", tables, architecture="gemma3n"), "GD502") == []


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F32"])
def test_gd503_types_that_are_looked_up_are_sound(tmp_path: Path, kind: str) -> None:
    assert found(ggufs.gemma3n(tmp_path / "m.gguf", (UINT32, 10), table=kind), "GD503") == []


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "IQ4_XS"])
def test_gd503_others_are_found(tmp_path: Path, kind: str) -> None:
    (finding,) = found(ggufs.gemma3n(tmp_path / "m.gguf", (UINT32, 10), table=kind), "GD503")
    assert (finding.severity, finding.tensor) == ("warning", "per_layer_token_embd.weight")
    assert finding.evidence["dtype"] == kind


def test_gd201_zero_kv_of_sharing_layers_and_not_gd106(tmp_path: Path) -> None:
    report = gemma_doctor.scan(ggufs.gemma3n(tmp_path / "m.gguf", (FLOAT32, 10.0), zero_shared=True))
    zero = [finding for finding in report.findings if finding.rule == "GD201"]
    assert len(zero) == 30
    assert {(f.evidence["layer"], f.evidence["donor"]) for f in zero} == {
        (layer, 19 if layer % 5 == 4 else 18) for layer in range(20, 30)
    }
    assert [finding for finding in report.findings if finding.rule == "GD106"] == []
    assert {finding.repair for finding in zero} == {None}
    assert {finding.evidence["loader"] for finding in zero} == {"llama.cpp"}


def metadata(**values: Any) -> dict[str, Value]:  # noqa: ANN401  # whatever a file may say
    keys = {"general.architecture": "gemma3n", "gemma3n.block_count": 30, ggufs.SHARED_KV: 10, **values}
    return {key: Value("UINT32", 0, content) for key, content in keys.items()}


@pytest.mark.parametrize(("model", "layers", "sharing"), [("gemma-3n-E2B", 30, 10), ("gemma-3n-E4B", 35, 15)])
def test_published_files_hold_every_tensor_that_is_declared(model: str, layers: int, sharing: int) -> None:
    known = ggufs.inventory(model)
    declared = gguf.identify({key: Value("UINT32", 0, content) for key, content in known["metadata"].items()})
    names = {name for name, _, _ in known["tensors"]}
    assert len(names) == {"gemma-3n-E2B": 727, "gemma-3n-E4B": 847}[model]
    assert declared.family == "gemma3n"
    assert declared.shared_kv.keys() <= names
    assert len(declared.shared_kv) == 3 * sharing
    assert {shared.donor for shared in declared.shared_kv.values()} == {18, 19}
    assert max(shared.layer for shared in declared.shared_kv.values()) == layers - 1


def test_a_stored_pattern_decides_over_donors() -> None:
    pattern = tuple(layer % 2 == 0 for layer in range(30))
    shared = gguf.identify(metadata(**{"gemma3n.attention.sliding_window_pattern": pattern})).shared_kv
    assert {shared[f"blk.{layer}.attn_k.weight"].donor for layer in (20, 22)} == {18}
    assert {shared[f"blk.{layer}.attn_k.weight"].donor for layer in (21, 23)} == {19}


def test_rules_of_gguf_are_silent_on_safetensors(tmp_path: Path) -> None:

    config = tiny_gemma3n_text_config()
    write(tmp_path, healthy(config), config)
    assert [f.rule for f in gemma_doctor.scan(tmp_path).findings if f.rule.startswith("GD5")] == []
