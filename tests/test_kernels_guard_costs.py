"""What the guard costs where Triton does not run (a T4, a V100), counted by benchmarks/guard_costs.py."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torchvision_operators  # noqa: F401  # before timm

ROOT = Path(__file__).parents[1]


@cache
def counted() -> dict[str, Any]:
    """What the script defines."""
    return runpy.run_path(str(ROOT / "benchmarks" / "guard_costs.py"))


@cache
def rows() -> list[Any]:
    return list(counted()["rows"]())


@pytest.mark.parametrize("number", range(8))
def test_plain_torch_is_started_less_often_and_moves_fewer_bytes_than_the_upcast(number: int) -> None:
    """Two blocks, two layouts, with and without the backward pass."""
    row = rows()[number]
    ours, theirs = row.costs["guarded"], row.costs["upcast"]
    assert ours.operations < theirs.operations
    assert ours.nbytes < theirs.nbytes
    assert ours.wide_products == 0
    assert theirs.wide_products > 0


def test_no_case_is_left_out() -> None:
    assert len(rows()) == 8
    assert {(row.layout, row.backward) for row in rows()} == {
        (layout, backward) for layout in ("contiguous", "channels last") for backward in (False, True)
    }


def test_the_documented_table_is_what_the_script_prints() -> None:
    assert counted()["table"](rows()) in (ROOT / "docs" / "guard.md").read_text()
