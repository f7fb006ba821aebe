"""Tiny Gemma 3 and Gemma 3n models as the real transformers and timm build and load them, on the CPU.

Importing this module needs tests/requirements-proof.txt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision_operators  # noqa: F401  # before whatever imports torchvision
import transformers
from timm.layers.fast_norm import rms_norm2d
from torch import nn

torch.set_grad_enabled(False)  # nothing is trained here
torch.set_num_threads(1)  # these models are so small that threads mostly wait for each other

ENCODER = "model.vision_tower.timm_model."

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that transformers loaded, and what it said about the keys.

    Attributes:
        model: The model, for inference.
        missing: Names that the checkpoint lacks: they were initialised anew.
        unexpected: Names that the model does not know.
        mismatched: Names of other shapes.
    """

    model: Any
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def complaints(self) -> tuple[str, ...]:
        """Every name that transformers would warn about."""
        return (*self.missing, *self.unexpected, *self.mismatched)


def skeleton(config: Mapping[str, Any]) -> nn.Module:
    """The model of a ``config.json``, without memory for its weights."""
    build = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        model: nn.Module = build(build.config_class.from_dict(dict(config)))
    return model


def load(folder: Path, dtype: torch.dtype | str = torch.float32) -> Loaded:
    """A checkpoint through ``from_pretrained``.

    The weights are copied: in the mapped file their alignment depends on the length of its header, and a product may
    add up in another order for another alignment.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    build = getattr(transformers, config.architectures[0])
    model, said = build.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    names = (tuple(sorted(map(str, said[key]))) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return Loaded(model.eval(), *names)


def encoder(model: nn.Module) -> nn.Module:
    """The image encoder of a Gemma 3n: timm's MobileNetV5."""
    return model.get_submodule(ENCODER.removesuffix("."))


def normalised(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a norm of the encoder makes of x, before the activation that may follow it."""
    result: torch.Tensor = rms_norm2d(x, [x.shape[1]], norm.weight, norm.eps)
    return result


def pixels(side: int = 64, seed: int = 0) -> torch.Tensor:
    """A batch of one image, as the processor gives it to Gemma 3n: from 0 to 1; shape (1, 3, side, side)."""
    return torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(seed))


def features(tower: Any) -> torch.Tensor:  # noqa: ANN401  # a class of timm
    """What an image encoder makes of an image, in its own dtype: shape (1, 2048, 16, 16)."""
    output: torch.Tensor = tower.forward_features(pixels().to(next(tower.parameters()).dtype))
    return output


def bright(side: int = 64) -> torch.Tensor:
    """The brightest image, so that the sums of the first convolution are as large as its weights allow."""
    return torch.ones((1, 3, side, side))


def answers(model: Any, image: Callable[[int], torch.Tensor] = pixels) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """Everything that a model says to a text, an image and a sound, as far as it takes them.

    Args:
        model: A class of transformers.
        image: Makes the image, from 0 to 1, of a side.
    """
    output = model(**_question(model.config, image), use_cache=False, output_hidden_states=True)
    states = {f"layer {index}": state for index, state in enumerate(output.hidden_states)}
    extra = {name: getattr(output, name, None) for name in ("image_hidden_states", "audio_hidden_states")}
    return {"logits": output.logits, **states, **{name: value for name, value in extra.items() if value is not None}}


def _question(config: Any, picture: Callable[[int], torch.Tensor] = pixels) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """The input of one sequence: some words, then the placeholders of one image and one sound."""
    words = torch.arange(3, 11)
    if config.model_type == "gemma3":
        image = torch.full((config.mm_tokens_per_image,), config.image_token_id)
        side = config.vision_config.image_size
        return {"input_ids": torch.cat([words, image])[None], "pixel_values": picture(side) * 2 - 1}
    if config.model_type != "gemma3n":
        return {"input_ids": words[None]}
    image = torch.full((config.vision_soft_tokens_per_image,), config.image_token_id)
    sound = torch.full((config.audio_soft_tokens_per_image,), config.audio_token_id)
    frames = torch.randn((1, 64, config.audio_config.input_feat_size), generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": torch.cat([words, image, sound])[None],
        "pixel_values": picture(64),
        "input_features": frames,
        "input_features_mask": torch.ones((1, 64), dtype=torch.bool),
    }


@contextmanager
def watching(
    modules: Mapping[str, nn.Module], see: Callable[[str, torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """While it lasts, ``see(name, input, output)`` is called for each run of each module."""
    hooks = [
        module.register_forward_hook(lambda _, args, output, name=name: see(name, args[0], output))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
