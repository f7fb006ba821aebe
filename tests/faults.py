"""Float16 faults planted in tiny models that are true to their architecture, and models that are large but sound.

tests/test_verify_faults.py holds the tool to them; tools/fault_table.py prints what other means say of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import transformers
from checkpoints import (
    PUBLISHED,
    healthy,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
    write,
)

from gemma_doctor.choices import Modality

__all__ = ["CONTROLS", "FAULTS", "Case"]

Tensors = dict[str, npt.NDArray[np.float32]]
Where = tuple[str, str, str]

ENCODER = "model.vision_tower.timm_model."
POINTWISE = f"{ENCODER}msfa.ffn.pw_proj"
STEM = f"{ENCODER}conv_stem"


@dataclass(frozen=True, slots=True)
class Case:
    """One planted fault, or a control.

    Attributes:
        name: What it is.
        config: The model.
        sicken: What makes of sound tensors those of the case.
        rule: The rule that must find it; None for a control.
        where: Phase, module and operation of the true first failure; None for a control.
        modality: What the model is given.
        backward: Whether it needs a backward pass.
    """

    name: str
    config: Mapping[str, Any]
    sicken: Callable[[Tensors], None]
    rule: str | None = None
    where: Where | None = None
    modality: Modality = "text"
    backward: bool = False

    def build(self, folder: Path) -> Path:
        """Write the checkpoint in float32, so that what is planted is there to the last bit."""
        config = dict(self.config)
        if config.get("model_type") == "resnet":
            return _resnet(folder, self.sicken)
        tensors = healthy(config)
        self.sicken(tensors)
        return write(folder, tensors, config)


def _resnet(folder: Path, sicken: Callable[[Tensors], None]) -> Path:
    """A small image classifier with batch norms."""
    transformers.set_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetForImageClassification(config)
    tensors = {name: np.array(tensor.numpy()) for name, tensor in model.state_dict().items()}
    sicken(tensors)
    return write(folder, tensors, {**config.to_dict(), "architectures": ["ResNetForImageClassification"]})


def scaled(name: str, factor: float) -> Callable[[Tensors], None]:
    """Multiplies a tensor."""

    def sicken(tensors: Tensors) -> None:
        tensors[name] = tensors[name] * np.float32(factor)

    return sicken


def filled(name: str, value: float, at: tuple[slice | int, ...] = ()) -> Callable[[Tensors], None]:
    """Sets a part of a tensor."""

    def sicken(tensors: Tensors) -> None:
        tensors[name][at] = value

    return sicken


def gains(value: float, *layers: int) -> Callable[[Tensors], None]:
    """Gives the norms behind the feed-forward blocks of Gemma 3 layers a gain."""

    def sicken(tensors: Tensors) -> None:
        for layer in layers:
            tensors[f"model.layers.{layer}.post_feedforward_layernorm.weight"][:] = value - 1

    return sicken


def quiet_and_loud(smaller: float, gain: float) -> Callable[[Tensors], None]:
    """Makes an attention's output small, which the norm behind it lifts again, and the logits, with the loss, large.

    The gradient of the projection is then the loss's, divided by that small output.
    """

    def sicken(tensors: Tensors) -> None:
        scaled(QUIET, smaller)(tensors)
        tensors["model.norm.weight"][:] = gain - 1

    return sicken


def published(tensors: Tensors) -> None:
    """The five largest convolution weights that were published."""
    for name, value in PUBLISHED.items():
        tensors[name].flat[0] = value


GEMMA3, IMAGES3 = tiny_gemma3_config(), tiny_gemma3_multimodal_config()
GEMMA3N, IMAGES3N = tiny_gemma3n_text_config(), tiny_gemma3n_config()
RESNET = {"model_type": "resnet"}
FIRST = (slice(None), 0)  # the first channel of every row
QUIET = "model.layers.1.self_attn.o_proj.weight"
VARIANCE = "resnet.embedder.embedder.normalization.running_var"

FAULTS = (
    Case(
        "convolution sum",
        IMAGES3N,
        scaled(f"{POINTWISE}.conv.weight", 2.0**16),
        "GD401",
        ("forward", f"{POINTWISE}.conv", "aten.convolution"),
        "image",
    ),
    Case(
        "stem convolution",
        IMAGES3N,
        scaled(f"{STEM}.conv.weight", 2.0**15.5),
        "GD401",
        ("forward", f"{STEM}.conv", "aten.convolution"),
        "image",
    ),
    Case(
        "weight that overflows in the cast",
        GEMMA3,
        filled("model.layers.1.mlp.down_proj.weight", 98304.0, (3, 5)),
        "GD401",
        ("load", "model.layers.1.mlp.down_proj", "weight"),
    ),
    Case(
        "AltUp square of 268",
        GEMMA3N,
        filled("model.embed_tokens.weight", 67.0, FIRST),
        "GD401",
        ("forward", "model", "aten.pow"),
    ),
    Case(
        "AltUp square of 480",
        GEMMA3N,
        filled("model.embed_tokens.weight", 120.0, FIRST),
        "GD401",
        ("forward", "model", "aten.pow"),
    ),
    Case(
        "correct_output_scale",
        GEMMA3N,
        filled("model.layers.0.altup.correct_output_scale", 60000.0),
        "GD401",
        ("forward", "model.layers.0", "aten.mul"),
    ),
    Case(
        "post-norm gain, overflow in the residual add",
        GEMMA3,
        gains(20000.0, 0, 1),
        "GD401",
        ("forward", "model.layers.1", "aten.add"),
    ),
    Case(
        "embedding times sqrt(d)",
        GEMMA3,
        filled("model.embed_tokens.weight", 30000.0, FIRST),
        "GD401",
        ("forward", "model.embed_tokens", "aten.mul"),
    ),
    Case(
        "patch convolution",
        IMAGES3,
        scaled("vision_tower.vision_model.embeddings.patch_embedding.weight", 2.0**18),
        "GD401",
        ("forward", "model.vision_tower.embeddings.patch_embedding", "aten.convolution"),
        "image",
    ),
    Case(
        "norm window from above",
        IMAGES3N,
        scaled(f"{POINTWISE}.conv.weight", 2.0**9),
        "GD401",
        ("forward", f"{POINTWISE}.bn", "aten.pow"),
        "image",
    ),
    Case(
        "norm window from below, overflow backward only",
        IMAGES3N,
        scaled(f"{POINTWISE}.conv.weight", 2.0**-7),
        "GD402",
        ("backward", f"{POINTWISE}.bn", "aten.pow"),
        "image",
        backward=True,
    ),
    Case(
        "gradient of a projection, overflow backward only",
        GEMMA3,
        quiet_and_loud(2.0**-10, 8000.0),
        "GD402",
        ("backward", "model.layers.1.self_attn.o_proj", "aten.mm"),
        backward=True,
    ),
    Case(
        "running_var of 497,160",
        RESNET,
        filled(VARIANCE, 497_160.0),
        "GD401",
        ("load", "resnet.embedder.embedder.normalization", "running_var"),
        "image",
    ),
)

CONTROLS = (
    Case("published convolution maxima (98.0 and four more)", IMAGES3N, published, modality="image"),
    Case("AltUp square of 254", GEMMA3N, filled("model.embed_tokens.weight", 63.5, FIRST)),
    Case("residual stream up to 50,000", GEMMA3, gains(6000.0, 0, 1)),
    Case("gradient of a projection, at a smaller loss", GEMMA3, quiet_and_loud(2.0**-8, 50.0), backward=True),
    Case("running_var of 60,000", RESNET, filled(VARIANCE, 60_000.0), modality="image"),
)
