"""A compiled kernel is launched without Triton's search for it, but only where it is the one that Triton would find."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from gemma_doctor.kernels.guards.launching import Launch

ROW = torch.zeros(32, dtype=torch.float16)
"""Its memory begins at a multiple of 16 bytes, as all that torch allocates does."""


def launching(*, interpreted: bool = False) -> tuple[Launch, Any, Any]:
    """A launch, what Triton's search for the kernel gets, and what the compiled kernel gets."""
    kernel, compiled = MagicMock(), MagicMock()
    kernel.__getitem__.return_value.return_value = None if interpreted else compiled
    launch = Launch(kernel, (3, 1, 1), (64, 8), 4, (7,))
    return launch, kernel.__getitem__.return_value, compiled.__getitem__.return_value


def test_triton_is_asked_once_and_then_the_compiled_kernel_gets_the_same_arguments() -> None:
    launch, searched, found = launching()
    numbers, tile = (7, 1e-6), (64, 8)
    for _ in range(2):
        launch.start((ROW, None), numbers[1:], (True,))
    arguments = (ROW, None, *numbers, *tile, *(True,))
    searched.assert_called_once_with(*arguments, num_warps=4)
    found.assert_called_once_with(*arguments)
    launch.kernel.__getitem__.assert_called_once_with((3, 1, 1))


@pytest.mark.parametrize(
    ("tensors", "switches"),
    [
        ((ROW, ROW), (True,)),
        ((ROW.float(), None), (True,)),
        ((ROW.to("meta"), None), (True,)),
        ((ROW, None), (False,)),
    ],
)
def test_what_is_compiled_in_is_asked_for_again(tensors: tuple[Any, ...], switches: tuple[bool, ...]) -> None:
    launch, searched, found = launching()
    launch.start((ROW, None), (1e-6,), (True,))
    launch.start(tensors, (1e-6,), switches)
    assert searched.call_count == 2
    found.assert_not_called()


def test_a_tensor_that_is_not_aligned_is_left_to_triton() -> None:
    """It compiles other loads for it."""
    launch, searched, found = launching()
    for _ in range(2):
        launch.start((ROW, ROW[1:]), (1e-6,))
    assert searched.call_count == 2
    launch.start((ROW, ROW[8:]), (1e-6,))
    launch.start((ROW, ROW[1:]), (1e-6,))
    assert searched.call_count == 4
    found.assert_not_called()


def test_tritons_interpreter_is_asked_each_time() -> None:
    launch, searched, _ = launching(interpreted=True)
    for _ in range(3):
        launch.start((ROW,))
    assert searched.call_count == 3
