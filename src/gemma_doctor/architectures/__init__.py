"""What a model family is, as data.

``identify`` turns a parsed ``config.json`` into a :class:`Model`; adding a family means one new file and one
more entry in :data:`FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gemma_doctor.architectures import (
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma4,
    generic,
    llama,
    mistral,
    paligemma,
    quantised,
    qwen2,
    qwen3,
    t5,
)
from gemma_doctor.architectures.base import Family, KeyLayout, Model
from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.limits import output_limit

__all__ = ["FAMILIES", "Family", "KeyLayout", "Model", "detect_layout", "identify", "output_limit"]

FAMILIES: tuple[Family, ...] = (
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    gemma3n.FAMILY,
    gemma4.FAMILY,
    llama.FAMILY,
    mistral.FAMILY,
    paligemma.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    t5.FAMILY,
)
"""Every family that is known; whatever none of them claims is generic."""


def identify(config: Mapping[str, Any] | None, names: Iterable[str] = ()) -> Model:
    """The model that a config describes.

    ``architectures`` decides; where it names nothing known, ``model_type`` does. An unknown model, an unknown
    variant of a known one, no config at all and quantised weights (packed by their quantiser's rules, not by
    the architecture's) give the generic model, which expects nothing.

    Args:
        config: The parsed ``config.json``; None where there is none.
        names: Names of the tensors on disk, which may tell that a quantiser wrote them.

    Raises:
        IndexFileError: If a value that decides over tensors has a wrong type or is out of range.
    """
    section = Section.of(config)
    family = _family(section)
    if quantised.is_quantised(section, names):
        return quantised.declare()
    if family is None:
        return generic.declare(section)
    return family.declare(section) or generic.declare(section)


def detect_layout(model: Model, names: Iterable[str]) -> KeyLayout | None:
    """The key layout that explains most names; the model's canonical one where several explain as many.

    Args:
        model: The model that the checkpoint holds.
        names: Names of its tensors on disk.

    Returns:
        One of ``model.layouts``; None where none explains a single name.
    """
    names = list(names)
    hits = {layout.name: _explained(model, layout, names) for layout in model.layouts}
    best = max(model.layouts, key=lambda layout: hits[layout.name], default=None)
    return best if best is not None and hits[best.name] else None


def _explained(model: Model, layout: KeyLayout, names: list[str]) -> int:
    return sum(model.canonical(name, layout) in model.expected for name in names)


def _family(section: Section) -> Family | None:
    classes = section.texts("architectures") or ()
    by_class = next((f for f in FAMILIES if any(name in f.classes for name in classes)), None)
    model_type = section.text("model_type")
    return by_class or next((f for f in FAMILIES if model_type in f.model_types), None)
