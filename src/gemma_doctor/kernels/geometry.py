"""How a tensor is cut into blocks: the quantum of every sum, whatever the chunks.

Counts and extremes do not care where a tensor is cut, but floating-point sums do. So sums are defined over
*blocks* that depend on the shape alone: whole rows together, up to ``BLOCK`` elements, or the ``BLOCK``-long
segments of a row that is longer. A chunk is any run of whole blocks; block sums are added exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["BLOCK", "Geometry"]

BLOCK = 1 << 18
"""Most elements in one block."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Rows of a tensor, and the blocks they are cut into.

    Attributes:
        rows: Extent of the first axis (output channels of a linear or OIHW convolution); 1 below two dimensions.
        length: Elements in a row.
        has_rows: Whether rows mean anything: two dimensions or more.
    """

    rows: int
    length: int
    has_rows: bool

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Geometry:
        """The geometry of a tensor with this shape."""
        if not shape[1:]:
            return cls(1, math.prod(shape), has_rows=False)
        return cls(shape[0], math.prod(shape[1:]), has_rows=True)

    @property
    def numel(self) -> int:
        """Elements in the tensor."""
        return self.rows * self.length

    @property
    def long_rows(self) -> bool:
        """Whether one row takes several blocks."""
        return self.length > BLOCK

    @property
    def block(self) -> int:
        """Elements in a full block."""
        return BLOCK if self.long_rows else max(1, BLOCK // max(1, self.length)) * self.length

    def blocks(self, elements: int) -> int:
        """Blocks in a run of that many elements that starts at an edge."""
        return -(-elements // self.block)

    def edge(self, first: int, most: int) -> int:
        """The last edge that a chunk can end at.

        Args:
            first: Element that the chunk begins with, at an edge itself.
            most: Elements wanted in it; at least one block is taken, and of long rows no more than one.
        """
        stop = first + max(1, most // max(1, self.block)) * self.block
        row_end = (first // self.length + 1) * self.length if self.long_rows else self.numel
        return min(stop, row_end)

    def edges(self, chunk: int) -> Iterator[tuple[int, int]]:
        """Cuts the tensor into chunks of whole blocks.

        Args:
            chunk: Elements wanted in a chunk; at least one block is taken.

        Yields:
            First element and one past the last, in order; nothing for an empty tensor.
        """
        first = 0
        while first < self.numel:
            stop = self.edge(first, chunk)
            yield first, stop
            first = stop
