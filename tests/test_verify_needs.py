"""Why what verify needs does not work: the cause that an import hides, and the command that mends a torchvision."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from itertools import pairwise

import pytest

from gemma_doctor.verify import needs
from gemma_doctor.verify.needs import first_line, why_broken


def hidden(*errors: Exception) -> Exception:
    """The first, raised because of the second, and so on."""
    for error, cause in pairwise(errors):
        error.__cause__ = cause
    return errors[0]


def test_the_cause_that_was_raised_first_is_told() -> None:
    told = why_broken(hidden(RuntimeError("Failed to import a.b"), ImportError("no c"), OSError("libd.so: not found")))
    assert told == "libd.so: not found"


@pytest.mark.parametrize("outer", ["Could not import torchvision.ops", "Failed to import transformers.models.x"])
def test_a_torchvision_is_told_by_any_of_the_causes(outer: str) -> None:
    error = hidden(RuntimeError(outer), RuntimeError("operator torchvision::nms does not exist\nand more"))
    told = why_broken(error)
    assert " (operator torchvision::nms does not exist). The two are built for each other" in told
    assert "pip install --force-reinstall torch torchvision" in told


def test_a_package_whose_version_cannot_be_told_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(needs, "version", missing)
    assert why_broken(ImportError("torchvision")).startswith("torchvision (of an unknown version) does not work with")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(" It broke. \nHere is how"), "It broke"),
        (ValueError(""), "ValueError"),
        (KeyError("name"), "'name'"),
    ],
)
def test_of_an_error_the_first_line_is_told(error: Exception, line: str) -> None:
    assert first_line(error) == line
