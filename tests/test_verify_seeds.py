"""A verification is its inputs and its seed: the same ones give the same JSON, but for times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
from checkpoints import healthy, tiny_gemma3_multimodal_config, tiny_gemma3n_config, write
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gemma_doctor import doctor
from gemma_doctor.checkpoint import open_checkpoint
from gemma_doctor.choices import MODES, REFERENCES, Modality, Mode, Reference
from gemma_doctor.errors import UsageError
from gemma_doctor.reports.machine import to_json
from gemma_doctor.verify.inputs import batch
from gemma_doctor.verify.loading import read_config
from gemma_doctor.verify.measures import Measures, Request

SEEDS = st.integers(0, 2**64 - 1)
INPUTS: st.SearchStrategy[Modality] = st.sampled_from(["text", "image"])  # sounds take a model of 900 tensors


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[Modality, Path]:
    folder = tmp_path_factory.mktemp("seeds")
    small, large = tiny_gemma3_multimodal_config(), tiny_gemma3n_config()
    pictures, sounds = write(folder / "small", healthy(small), small), write(folder / "large", healthy(large), large)
    return {"text": pictures, "image": pictures, "audio": sounds}


def untimed(node: Any) -> Any:  # noqa: ANN401  # JSON values
    """Without what a clock said."""
    if isinstance(node, dict):
        return {key: untimed(value) for key, value in node.items() if key != "seconds"}
    return [untimed(value) for value in node] if isinstance(node, list) else node


def measures(modality: Modality, reference: Reference, seed: int, length: int, mode: Mode = "half") -> Measures:
    request = Request(length=length, seed=seed)
    return Measures("cpu", mode, modalities=(modality,), reference=reference, request=request)


@given(st.builds(measures, INPUTS, st.sampled_from(REFERENCES), SEEDS, st.integers(2, 12), st.sampled_from(MODES)))
@example(measures("audio", "none", 2**64 - 1, 5))
@settings(max_examples=3)
def test_the_same_seed_gives_the_same_report(checkpoints: dict[Modality, Path], how: Measures) -> None:
    """To the last bit, whatever was drawn before: every operation, forward and backward, and all that is judged."""

    def report() -> Any:  # noqa: ANN401  # as above
        with torch.enable_grad():
            return untimed(json.loads(to_json(doctor.verify(checkpoints[how.modalities[0]], how))))

    first = report()
    assert {activation["phase"] for activation in first["activations"]} == {"load", "forward", "backward"}
    torch.rand(1)
    assert report() == first


@pytest.mark.parametrize(
    ("modality", "part"), [("text", "input_ids"), ("image", "pixel_values"), ("audio", "input_features")]
)
@given(seeds=st.sets(SEEDS, min_size=2, max_size=2), length=st.integers(2, 12))
@settings(max_examples=5)
def test_another_seed_gives_another_input(
    checkpoints: dict[Modality, Path], modality: Modality, part: str, seeds: set[int], length: int
) -> None:
    """Other words, another picture, another sound; and the same each time for the same one."""
    subject = read_config(open_checkpoint(checkpoints[modality]))

    def made(seed: int) -> tuple[str, list[object]]:
        found = batch(subject, modality, Request(length=length, seed=seed))
        return found.words, found.arguments[part].tolist()

    one, other = seeds
    assert made(one) == made(one) != made(other)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_torch_does_not_take_is_told(seed: int) -> None:
    with pytest.raises(UsageError, match=rf"--seed {seed}: take one from 0 to 2\^64 - 1"):
        Request(seed=seed)
