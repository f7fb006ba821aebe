"""SHA-256 of blocks that are written over as soon as they may be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_doctor.repair.applying.digest import BLOCK_BYTES, Digest, hashing


class Lazy(Future[Any]):
    """A call that is made when somebody waits for it."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:  # noqa: ANN401
        super().__init__()
        self._call, self._arguments = call, arguments

    def result(self, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Makes the call."""
        assert timeout is None
        return self._call(*self._arguments)


class LazyPool:
    """The slowest thread there is."""

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Lazy:  # noqa: ANN401
        """Takes note of a call."""
        return Lazy(call, *arguments)


def hashed(digest: Digest, blocks: list[bytes]) -> str:
    """What a digest makes of some blocks."""
    for content in blocks:
        block = digest.spare()[: len(content)]
        block[:] = np.frombuffer(content, np.uint8)
        digest.feed(block)
    return digest.hexdigest()


@pytest.mark.parametrize("aside", [False, True])
@given(blocks=st.lists(st.binary(max_size=40), max_size=20))
def test_the_hash_is_that_of_all_blocks_in_order(blocks: list[bytes], *, aside: bool) -> None:
    with hashing(aside=aside) as digest:
        assert hashed(digest, blocks) == hashlib.sha256(b"".join(blocks)).hexdigest()


def test_no_block_is_given_out_before_it_is_hashed() -> None:
    blocks = [bytes([number]) * 9 for number in range(20)]
    digest = Digest(cast("ThreadPoolExecutor", LazyPool()))
    assert hashed(digest, blocks) == hashlib.sha256(b"".join(blocks)).hexdigest()


def test_an_error_of_the_hash_comes_out() -> None:
    class Broken(LazyPool):
        def submit(self, call: Callable[..., Any], *arguments: Any) -> Lazy:  # noqa: ANN401
            assert arguments
            return Lazy(call, "text")

    digest = Digest(cast("ThreadPoolExecutor", Broken()))
    with pytest.raises(TypeError):
        hashed(digest, [b"x"])


def test_a_block_is_as_large_as_it_says() -> None:
    assert Digest().spare().nbytes == BLOCK_BYTES
