"""Weights that strain bounds: outliers, and vectors that line up so that the inequalities become equalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from checkpoints import Array, Config, healthy

from gemma_doctor.architectures import identify
from gemma_doctor.architectures.base import Expected

Weights = dict[str, Array]


def random(config: Config, rng: np.random.Generator) -> Weights:
    """Sound weights, each tensor as a whole on another scale, signs of gains mixed."""
    tensors = healthy(config, int(rng.integers(2**31)))
    return {name: np.float32(10 ** rng.uniform(-1, 1)) * array for name, array in tensors.items()}


def outliers(config: Config, rng: np.random.Generator) -> Weights:
    """One channel of every gain, one row of every matrix, a hundred times the others."""
    tensors = healthy(config, int(rng.integers(2**31)))
    for array in tensors.values():
        array[int(rng.integers(len(array)))] *= np.float32(100)
    return tensors


def aligned(config: Config, rng: np.random.Generator) -> Weights:
    """Every element of a tensor the same: all vectors point one way, and Cauchy-Schwarz is an equality."""
    del rng
    return {name: np.full(array.shape, _level(name), np.float32) for name, array in healthy(config).items()}


def narrow(config: Config, rng: np.random.Generator) -> Weights:
    """One channel carries everything: gains and rows are large there, and small elsewhere."""
    tensors = healthy(config, int(rng.integers(2**31)))
    for array in tensors.values():
        array[..., 1:] *= np.float32(1e-3)
        array[..., 0] += np.float32(3)
    return tensors


def spiked(config: Config, rng: np.random.Generator) -> Weights:
    """Every writer of a stream puts all it has into channel 0, with one sign, so that the sum of them is reached.

    A norm gives most where one channel holds everything, and that channel has the largest gain. AltUp's coefficients
    are 0, for what they multiply would hide everything behind it. Words fill all channels, and are louder than
    the soft tokens of images.
    """
    model = identify(config)
    tensors = {name: np.abs(array) * np.float32(1e-3) for name, array in healthy(config, int(rng.integers(99))).items()}
    for name, array in tensors.items():
        if name.endswith("_coefs.weight"):
            array[:] = 0
        elif model.expected[name].role == "embedding":
            array[:] = 16
        elif model.expected[name].rows == "inputs":
            array[0, 0] = 2
        else:
            array[0] = 64 if name.endswith("correct_output_scale") else 2
    return tensors


def pointed(config: Config, rng: np.random.Generator) -> Weights:
    """Every matrix hands channel 0 on to channel 0, and every gain is large there, behind quiet words.

    What the layers add is all there is, and each product meets its largest row with all that a norm gives. The numbers
    have many digits, so that float16 rounds each of them, up as well as down.
    """
    model, tensors = identify(config), spiked(config, rng)
    for name, known in model.expected.items():
        if name not in tensors or name.endswith("_coefs.weight"):
            continue
        level = np.float32(rng.uniform(0.75, 1.5))
        if _hands_on(known):
            tensors[name][0] = 1e-3
            tensors[name][0, 0] = level
            if name.endswith("gate_proj.weight"):
                tensors[name][1:, 0] = -level  # what a sparse gate subtracts is then as far below as it can be
        else:
            tensors[name] = (
                np.float32(2.0**-8) + 0 * tensors[name] if known.role == "embedding" else tensors[name] * level
            )
    return tensors


def coupled(config: Config, rng: np.random.Generator) -> Weights:
    """The same with words in one channel, and AltUp's coefficients as large as their weights allow."""
    model, tensors = identify(config), pointed(config, rng)
    for name, array in tensors.items():
        if name.endswith("_coefs.weight"):
            array[:] = 0.25
        elif name.endswith("modality_router.weight"):
            array[:, 0] = 64  # the tanh behind it is 1
        elif model.expected[name].role == "embedding":
            array[:, 0] = 1
    return tensors


def _hands_on(known: Expected) -> bool:
    """Whether each output is a product over the channels of one position."""
    return known.role == "linear" or (known.role == "conv" and known.shape[-1] == 1 and known.shape[1] > 1)


def _level(name: str) -> float:
    return 2.0 if "norm" in name else 0.25


RECIPES: Mapping[str, Callable[[Config, np.random.Generator], Weights]] = {
    "random": random,
    "outliers": outliers,
    "aligned": aligned,
    "narrow": narrow,
    "spiked": spiked,
    "pointed": pointed,
    "coupled": coupled,
}


def stressed(config: Config, recipe: str, seed: int) -> dict[str, Any]:
    """The weights of a recipe, every tensor that the architecture needs.

    Args:
        config: The model.
        recipe: One of :data:`RECIPES`.
        seed: Of its random numbers.
    """
    tensors = RECIPES[recipe](config, np.random.default_rng(seed))
    assert tensors.keys() == {name for name, known in identify(config).expected.items() if known.need in _NEEDED}
    return dict(tensors)


_NEEDED = {"required", "stem-bias"}
