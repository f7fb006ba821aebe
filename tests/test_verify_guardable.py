"""`--guard` of a model that the kernels do not know is refused before a weight is loaded; nobody else is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import family_models
import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
import transformers
from checkpoints import (
    healthy,
    tiny_gemma2_config,
    tiny_gemma3_config,
    tiny_gemma3_multimodal_config,
    tiny_gemma3n_config,
    tiny_gemma3n_text_config,
    write,
)
from timm.layers import RmsNorm2d
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gemma_doctor import doctor
from gemma_doctor.errors import UsageError
from gemma_doctor.kernels import guard
from gemma_doctor.verify.guardable import check_known
from gemma_doctor.verify.loading import Subject
from gemma_doctor.verify.measures import Measures, Request

OURS = (
    tiny_gemma3_config(),
    tiny_gemma3_multimodal_config(),
    tiny_gemma3n_config(),
    tiny_gemma3n_text_config(),
    {"architectures": ["ResNetForImageClassification"], "embedding_size": 8, "hidden_sizes": [8], "depths": [1]},
)
MODELS = {
    **family_models.CONFIGS,
    **{f"{config['architectures'][0]}-{at}": (config["architectures"][0], config) for at, config in enumerate(OURS)},
}
GUARDED = Measures(device="cpu", guard=True, backward=False, reference="none", request=Request(length=8))


@pytest.fixture
def ran() -> Iterator[list[str]]:
    """The classes of all modules that run."""
    seen: list[str] = []
    handle = register_module_forward_pre_hook(lambda module, _: seen.append(type(module).__name__))
    yield seen
    handle.remove()


def checkpoint(folder: Path, config: Mapping[str, Any]) -> Path:
    return write(folder / "checkpoint", healthy(config), config)


def test_a_model_that_no_guard_knows_is_refused_before_anything_is_run(tmp_path: Path, ran: list[str]) -> None:
    with pytest.raises(
        UsageError, match=r"--guard knows nothing in a Gemma2ForCausalLM\. It knows Gemma 3 and Gemma 3n"
    ):
        doctor.verify(checkpoint(tmp_path, tiny_gemma2_config()), GUARDED)
    assert ran == []


def test_a_model_that_the_guard_knows_is_run(tmp_path: Path, ran: list[str]) -> None:
    """Which is how the test above would notice a run."""
    doctor.verify(checkpoint(tmp_path, tiny_gemma3_config()), GUARDED)
    assert ran.count("Gemma3ForCausalLM") == 1


@pytest.mark.parametrize("name", MODELS)
def test_those_are_refused_in_which_the_guard_finds_nothing(name: str) -> None:
    architecture, config = MODELS[name]
    build = getattr(transformers, architecture)
    subject = Subject(Path(), build.config_class.from_dict(dict(config)), build)
    assert refuses(lambda: check_known(subject)) is refuses(lambda: guard(random(subject)))


def test_a_class_that_inherits_from_a_known_one_is_known_as_it_is_to_the_guard() -> None:
    class Ours(RmsNorm2d):  # type: ignore[misc]  # timm is not seen by the type checker
        """A model that is a norm."""

        def __init__(self, _config: object) -> None:
            super().__init__(8)

    subject = Subject(Path(), transformers.PretrainedConfig(), Ours)
    check_known(subject)
    assert len(guard(random(subject)).replaced) == 1


def random(subject: Subject) -> nn.Module:
    """The model with any weights."""
    torch.manual_seed(0)
    model: nn.Module = subject.build(subject.config)
    return model.half()


def refuses(what: Callable[[], object]) -> bool:
    try:
        what()
    except UsageError:
        return True
    return False
