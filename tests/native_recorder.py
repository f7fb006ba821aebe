"""The compiled recorder for tests: where there is a compiler it must compile."""

from __future__ import annotations

from typing import Any

import pytest

from gemma_doctor.verify import native

__all__ = ["compiled_recorder"]


def compiled_recorder() -> Any:  # noqa: ANN401  # a compiled module
    """The module; without a compiler the test is skipped."""
    if native._command() is None:  # noqa: SLF001
        pytest.skip("no C++ compiler")
    module = native.building().result()
    assert module is not None
    return module
