"""Words in memory, a cache line at a time, and the loop over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llvmlite import ir

from gemma_doctor.kernels.vectors import I1, I32, I64, Node, Vector

__all__ = ["LINE", "Words", "loop"]

LINE = 64
"""Bytes in a cache line, and in a vector of words."""

AHEAD = 1 << 13
"""How many bytes ahead the next ones are asked for: two pages, since the hardware's own prefetcher stops at each."""

Step: TypeAlias = Callable[[Vector, Vector, list[Vector]], list[Vector]]
"""From words, the mask of those that count, and what is carried, to what is carried on."""

Body: TypeAlias = Callable[[Node, list[Vector]], list[Vector]]


@dataclass(frozen=True, slots=True)
class Words:
    """Elements that lie one after the other in memory, as unsigned integers, a cache line to a vector.

    Attributes:
        builder: Where the instructions are written.
        bits: Bits in an element.
    """

    builder: Node
    bits: int

    @property
    def lanes(self) -> int:
        """Elements in a vector."""
        return LINE * 8 // self.bits

    @property
    def sign(self) -> Vector:
        """The sign bit."""
        return self.full(1 << (self.bits - 1))

    @property
    def magnitude(self) -> Vector:
        """All bits but the sign."""
        return self.full((1 << (self.bits - 1)) - 1)

    def full(self, number: int) -> Vector:
        """A number in every lane."""
        return Vector.full(self.builder, ir.IntType(self.bits), self.lanes, number)

    def splat(self, scalar: Node) -> Vector:
        """A scalar of the running program in every lane."""
        return Vector.splat(self.builder, scalar, self.lanes)

    def over_all(self, address: Node, size: Node, carried: Sequence[Vector], step: Step) -> list[Vector]:
        """Runs a step over ``size`` elements: from words, their mask and what is carried to what is carried on."""
        whole = self.builder.udiv(size, I64(self.lanes))
        return self.over_whole(address, whole, self.over_rest(address, size, carried, step), step)

    def over_whole(self, address: Node, vectors: Node, carried: Sequence[Vector], step: Step) -> list[Vector]:
        """The same over so many full vectors; what follows by and by is asked for."""
        every = Vector.full(self.builder, I1, self.lanes, 1)

        def body(index: Node, state: list[Vector]) -> list[Vector]:
            here = self.address(address, index)
            prefetch(self.builder, self.builder.add(here, I64(AHEAD)))
            return step(Vector.load(self.builder, here, ir.IntType(self.bits), self.lanes), every, state)

        return loop(self.builder, vectors, carried, body)

    def over_rest(self, address: Node, size: Node, carried: Sequence[Vector], step: Step) -> list[Vector]:
        """The same over the last of ``size`` elements, which fill no vector; zeros stand in for the others."""
        rest = self.builder.urem(size, I64(self.lanes))
        once = self.builder.zext(self.builder.icmp_signed("!=", rest, I64(0)), I64)
        there = self.address(address, self.builder.udiv(size, I64(self.lanes)))
        return loop(self.builder, once, carried, lambda _, state: step(*self._first(there, rest), state))

    def address(self, start: Node, vectors: Node) -> Node:
        """Where so many vectors have passed."""
        return self.builder.add(start, self.builder.mul(vectors, I64(LINE)))

    def _first(self, address: Node, size: Node) -> tuple[Vector, Vector]:
        """The first few elements at an address, read without touching a byte beyond them, and their mask."""
        indices = Vector(self.builder, ir.Constant(ir.VectorType(I32, self.lanes), list(range(self.lanes))))
        mask = indices < Vector.splat(self.builder, self.builder.trunc(size, I32), self.lanes)
        zeros = self.full(0).value
        pointer = self.builder.inttoptr(address, zeros.type.as_pointer())
        signature = ir.FunctionType(zeros.type, [pointer.type, I32, mask.value.type, zeros.type])
        name = f"llvm.masked.load.v{self.lanes}i{self.bits}.p0"
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(module, signature, name)
        return Vector(self.builder, self.builder.call(function, [pointer, I32(1), mask.value, zeros])), mask


def prefetch(builder: Node, address: Node) -> None:
    """Asks for the cache line at an address; harmless wherever the address points."""
    pointer = builder.inttoptr(address, ir.IntType(8).as_pointer())
    signature = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], signature)
    read, first_level, data = I32(0), I32(3), I32(1)
    builder.call(function, [pointer, read, first_level, data])


def loop(builder: Node, count: Node, carried: Sequence[Vector], body: Body) -> list[Vector]:
    """Runs a body ``count`` times: from the index and what is carried to what is carried on."""
    before, head = builder.block, builder.append_basic_block("loop")
    inside, after = builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    index, *phis = (_phi(builder, start, before) for start in (I64(0), *(vector.value for vector in carried)))
    builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
    builder.position_at_end(inside)
    results = body(index, [Vector(builder, phi) for phi in phis])
    index.add_incoming(builder.add(index, I64(1)), builder.block)
    for phi, result in zip(phis, results, strict=True):
        phi.add_incoming(result.value, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return [Vector(builder, phi) for phi in phis]


def _phi(builder: Node, value: Node, block: Node) -> Node:
    phi = builder.phi(value.type)
    phi.add_incoming(value, block)
    return phi
