"""The last check of an output finds what is not as planned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from applying import drop, mend, plan_for, scale, set_config
from checkpoints import bfloat16, write

from gemma_doctor.checkpoint import FileBytes, open_checkpoint
from gemma_doctor.errors import OutputError
from gemma_doctor.repair.applying.outline import outline
from gemma_doctor.repair.applying.proof import prove

WEIGHTS = {f"w{i}": bfloat16(np.full((2, 2), i + 1)) for i in range(4)}
EDITS = (scale("w1", 1), drop("w2"), set_config(1, "a", "b"))


def damage_shape(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(
        path.read_bytes().replace(b'"w0":{"dtype":"BF16","shape":[2,2]', b'"w0":{"dtype":"BF16","shape":[1,4]')
    )


def damage_name(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.write_bytes(path.read_bytes().replace(b'"w3"', b'"x3"'))


def damage_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_bytes(path.read_bytes().replace(b"24", b"25"))


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": {"b": 2}}', encoding="utf-8")


def damage_header(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"nothing")


def remove_index(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "fact"),
    [
        (damage_shape, "the output's tensor 'w0' is not what the plan makes it"),
        (damage_name, "the output's tensor 'w3' is not what the plan makes it"),
        (damage_index, "total_size says 25"),
        (damage_config, "config.json: a.b is not what the plan makes it"),
        (damage_header, "a fault that the source has not"),
        (remove_index, "the output cannot be opened"),
    ],
)
def test_a_damaged_output_is_found(tmp_path: Path, damage: Callable[[Path], None], fact: str) -> None:
    source = write(tmp_path / "source", WEIGHTS, {"a": {"b": 0}}, shards=2)
    mend(source, tmp_path / "out", *EDITS)
    checkpoint = open_checkpoint(source)
    with FileBytes(checkpoint) as files:
        sketch = outline(plan_for(checkpoint, *EDITS), checkpoint, files)
    prove(sketch, checkpoint, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(OutputError, match=fact):
        prove(sketch, checkpoint, tmp_path / "out")
