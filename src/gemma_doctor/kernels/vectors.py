"""Vectors for the hot loops, written down as LLVM's own instructions.

Left to itself the compiler makes vectors of some loops and not of others, for reasons that change with its version,
and takes seconds to decide. Here they are spelled out, 64 bytes at a time, and LLVM cuts them into what the machine
has (AVX-512, AVX2, NEON, SSE). The order of every addition is spelled out with them: every machine gets the same bits.

The functions below run while numba compiles. What they pass around stands for values of the running program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from llvmlite import ir

__all__ = ["F16", "F32", "F64", "I1", "I16", "I32", "I64", "Node", "Vector", "as_int64", "counted"]

Node: TypeAlias = Any
"""Something of llvmlite, which has no types: a builder, a type or a value of the running program."""

I1, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_BITS = {F16: 16, F32: 32, F64: 64}

_FUSE = ("contract",)
"""Lets a multiplication and the addition that follows become one instruction; both must carry the flag."""


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector of the running program, with the operators of its elements.

    Attributes:
        builder: Where its instructions are written.
        value: The vector.
    """

    builder: Node
    value: Node

    @classmethod
    def full(cls, builder: Node, element: Node, lanes: int, number: float) -> Vector:
        """A number in every lane."""
        return cls(builder, ir.Constant(ir.VectorType(element, lanes), [number] * lanes))

    @classmethod
    def splat(cls, builder: Node, scalar: Node, lanes: int) -> Vector:
        """A scalar of the running program in every lane."""
        empty = cls(builder, ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined))
        return cls(builder, builder.insert_element(empty.value, scalar, I32(0))).chosen([0] * lanes)

    @classmethod
    def load(cls, builder: Node, address: Node, element: Node, lanes: int) -> Vector:
        """The vector at an address, whatever its alignment."""
        pointer = builder.inttoptr(address, ir.VectorType(element, lanes).as_pointer())
        return cls(builder, builder.load(pointer, align=1))

    @property
    def lanes(self) -> int:
        """Number of elements."""
        lanes: int = self.value.type.count
        return lanes

    @property
    def bits(self) -> int:
        """Bits in an element."""
        element = self.value.type.element
        bits: int = element.width if isinstance(element, ir.IntType) else _BITS[element]
        return bits

    def constant(self, number: float) -> Vector:
        """A vector like this one with a number in every lane."""
        return Vector.full(self.builder, self.value.type.element, self.lanes, number)

    def __add__(self, other: Vector) -> Vector:
        if self.value.type.element in _BITS:
            return self._new(self.builder.fadd(self.value, other.value, flags=_FUSE))
        return self._new(self.builder.add(self.value, other.value))

    def __and__(self, other: Vector) -> Vector:
        return self._new(self.builder.and_(self.value, other.value))

    def __xor__(self, other: Vector) -> Vector:
        return self._new(self.builder.xor(self.value, other.value))

    def __lshift__(self, other: Vector) -> Vector:
        return self._new(self.builder.shl(self.value, other.value))

    def __rshift__(self, other: Vector) -> Vector:
        return self._new(self.builder.lshr(self.value, other.value))

    def __lt__(self, other: Vector) -> Vector:
        """A mask: where these unsigned integers are less."""
        return self._new(self.builder.icmp_unsigned("<", self.value, other.value))

    def equals(self, other: Vector) -> Vector:
        """A mask: where both are the same integer."""
        return self._new(self.builder.icmp_unsigned("==", self.value, other.value))

    def smaller_float(self, other: Vector) -> Vector:
        """The smaller of each pair of floats."""
        return self._new(
            self.builder.select(self.builder.fcmp_ordered("<", self.value, other.value), self.value, other.value)
        )

    def squared(self, *, exact: bool) -> Vector:
        """The squares of floats; where they are exact, they may be added in the same instruction."""
        return self._new(self.builder.fmul(self.value, self.value, flags=_FUSE if exact else ()))

    def where(self, mask: Vector, otherwise: Vector) -> Vector:
        """These elements where the mask holds, the others elsewhere."""
        return self._new(self.builder.select(mask.value, self.value, otherwise.value))

    def larger(self, other: Vector) -> Vector:
        """The larger of each pair of unsigned integers."""
        return other.where(self < other, self)

    def smaller(self, other: Vector) -> Vector:
        """The smaller of each pair of unsigned integers."""
        return self.where(self < other, other)

    def larger_signed(self, other: Vector) -> Vector:
        """The larger of each pair of signed integers."""
        return other.where(self._new(self.builder.icmp_signed("<", self.value, other.value)), self)

    def smaller_signed(self, other: Vector) -> Vector:
        """The smaller of each pair of signed integers."""
        return self.where(self._new(self.builder.icmp_signed("<", self.value, other.value)), other)

    def less_one_where(self, mask: Vector) -> Vector:
        """Counts downwards where the mask holds: a true comparison is -1 in its lane."""
        return self + self._new(self.builder.sext(mask.value, self.value.type))

    def widened(self, element: Node) -> Vector:
        """The same unsigned integers, or floats, as wider ones."""
        extend = self.builder.fpext if self.value.type.element in _BITS else self.builder.zext
        return self._new(extend(self.value, ir.VectorType(element, self.lanes)))

    def absolute(self) -> Vector:
        """The magnitudes of float64."""
        bits = self.read_as(I64, 64)
        return (bits & bits.constant((1 << 63) - 1)).read_as(F64, 64)

    def as_floats(self, *, signed: bool) -> Vector:
        """The nearest float64 of integers."""
        convert = self.builder.sitofp if signed else self.builder.uitofp
        return self._new(convert(self.value, ir.VectorType(F64, self.lanes)))

    def widened_signed(self, element: Node) -> Vector:
        """The same signed integers as wider ones."""
        return self._new(self.builder.sext(self.value, ir.VectorType(element, self.lanes)))

    def read_as(self, element: Node, bits: int) -> Vector:
        """The same bytes as elements of another type, of that many bits."""
        vector = ir.VectorType(element, self.lanes * self.bits // bits)
        return self._new(self.builder.bitcast(self.value, vector))

    def halves(self) -> tuple[Vector, Vector]:
        """The first and the second half of the lanes."""
        middle = self.lanes // 2
        return self.chosen(range(middle)), self.chosen(range(middle, self.lanes))

    def folded(self, join: Callable[[Vector, Vector], Vector]) -> Node:
        """All elements joined to one scalar: halves with halves, so in the same order everywhere."""
        vector = self
        while vector.lanes > 1:
            vector = join(*vector.halves())
        return self.builder.extract_element(vector.value, I32(0))

    def _new(self, value: Node) -> Vector:
        return Vector(self.builder, value)

    def chosen(self, lanes: Sequence[int]) -> Vector:
        """These lanes, in this order."""
        indices = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return self._new(self.builder.shuffle_vector(self.value, self.value, indices))


def counted(counters: Vector) -> Node:
    """What counters that count downwards have counted, as a 64-bit integer."""
    wide = counters if counters.bits == I64.width else counters.widened_signed(I32)
    return counters.builder.neg(as_int64(counters.builder, wide.folded(Vector.__add__)))


def as_int64(builder: Node, scalar: Node) -> Node:
    """A signed integer of any width as a 64-bit one."""
    return scalar if scalar.type == I64 else builder.sext(scalar, I64)
