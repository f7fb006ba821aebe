"""What a running model measured: the trace that ``gemma-doctor verify --trace`` writes, as far as passes need it.

The file is one JSON object; keys that are not named here are left unread::

    {"schema_version": 1, "kind": "trace",
     "activations": [{"module": "model.vision_tower.timm_model.conv_stem.conv",
                      "peak": 12.5, "mean_square_min": 0.04}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gemma_doctor.nodes import Node
from gemma_doctor.repair.reading import read

__all__ = ["TRACE_VERSION", "Calibration", "Measured", "read_calibration"]

TRACE_VERSION = 1
"""Version of the trace's JSON layout."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one module's output was, over everything that ran through it.

    Attributes:
        peak: Largest magnitude.
        mean_square_min: Least mean square over the channels at any position; None where that was not measured.
    """

    peak: float
    mean_square_min: float | None = None

    def merge(self, other: Measured) -> Measured:
        """Both runs of the module together."""
        known = [m for m in (self.mean_square_min, other.mean_square_min) if m is not None]
        return Measured(max(self.peak, other.peak), min(known, default=None))


@dataclass(frozen=True, slots=True)
class Calibration:
    """A trace.

    Attributes:
        origin: What messages call it.
        modules: What was measured, by the module's name in the model: a weight's name without ``.weight``.
    """

    origin: str
    modules: Mapping[str, Measured]


def read_calibration(path: Path) -> Calibration:
    """The trace that a file holds.

    Raises:
        UsageError: If it is none; the message names the file and the field.
    """
    modules: dict[str, Measured] = {}
    for item in read(path, "trace", TRACE_VERSION).member("activations").items():
        name, measured = item.member("module").text(), _measured(item)
        modules[name] = measured.merge(modules[name]) if name in modules else measured
    return Calibration(str(path), modules)


def _measured(node: Node) -> Measured:
    members = node.table()
    if members.get("peak") is not None and members["peak"].value is None:
        members["peak"].expected("a finite number: an overflowed run has no peak, so trace the float32 reference")
    square = members.get("mean_square_min")
    return Measured(node.member("peak").magnitude(), None if square is None else square.maybe(Node.magnitude))
