"""One step of a model: what is run, which output is the answer, what its loss is, and whose gradients are measured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tiny_models  # noqa: F401  # makes torchvision importable beside a torch for CPUs
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    CausalLMOutput,
    QuestionAnsweringModelOutput,
    SemanticSegmenterOutput,
)

from gemma_doctor.verify.offloaded import tensors_of
from gemma_doctor.verify.step import forward, gradients, parameter_stats

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _with_gradients() -> Iterator[None]:
    with torch.enable_grad():
        yield


class Answering(nn.Module):  # type: ignore[misc]  # torch is not read by the type checker
    """Returns what it was made with, and keeps what it was given."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer
        self.given: dict[str, object] = {}

    def forward(self, **arguments: object) -> object:
        """The answer."""
        self.given = arguments
        return self.answer


SEEN = torch.tensor([[1.0, 2.0]])


def test_the_logits_are_the_answer_and_the_models_own_loss_is_the_loss() -> None:
    answer = CausalLMOutput(logits=SEEN, loss=torch.tensor(7.0, dtype=torch.float16))
    step = forward(Answering(answer), {}, CPU, amp=False)
    assert (step.logits.tolist(), step.loss.tolist(), step.loss.dtype) == (SEEN.tolist(), 7.0, torch.float32)
    assert step.name == "logits"


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ((SEEN, SEEN + 1), "first output"),
        (BaseModelOutputWithPooling(SEEN, SEEN + 1), "last_hidden_state"),
        (QuestionAnsweringModelOutput(start_logits=SEEN, end_logits=SEEN + 1), "start_logits"),
    ],
)
def test_without_logits_the_first_output_is_the_answer_and_named(answer: object, name: str) -> None:
    step = forward(Answering(answer), {}, CPU, amp=False)
    assert (step.logits.tolist(), step.loss.tolist()) == (SEEN.tolist(), 2.5)  # the mean of its squares
    assert step.name == name


def test_a_loss_is_not_what_is_compared() -> None:
    answer = QuestionAnsweringModelOutput(loss=torch.tensor(7.0), start_logits=SEEN, end_logits=SEEN + 1)
    step = forward(Answering(answer), {}, CPU, amp=False)
    assert (step.logits.tolist(), step.loss.tolist()) == (SEEN.tolist(), 7.0)


def test_the_classes_of_a_segmentation_come_last() -> None:
    """There each point of the picture has a distribution, and a row of points is none."""
    answer = SemanticSegmenterOutput(logits=torch.arange(24.0).reshape(1, 3, 2, 4))
    step = forward(Answering(answer), {}, CPU, amp=False)
    assert step.logits[0, 1, 2].tolist() == [6, 14, 22]


def test_a_sound_float16_output_has_a_finite_loss() -> None:
    """300 squared is beyond float16."""
    step = forward(Answering((torch.full((2, 2), 300.0, dtype=torch.float16),)), {}, CPU, amp=False)
    assert step.loss.tolist() == 90_000


def test_autocast_multiplies_in_float16() -> None:
    product = {"input": torch.full((1, 2), 0.1)}
    layer = nn.Linear(2, 1)
    assert [forward(layer, product, CPU, amp=amp).logits.dtype for amp in (True, False)] == [
        torch.float16,
        torch.float32,
    ]


def test_no_cache_is_made_where_a_model_is_trained() -> None:
    words = {"input_ids": torch.ones(1, 2), "labels": torch.ones(1, 2)}
    forward(trained := Answering((SEEN,)), words, CPU, amp=False)
    assert trained.given == {**words, "use_cache": False}
    pixels = {"pixel_values": torch.ones(1)}
    forward(other := Answering((SEEN,)), pixels, CPU, amp=False)  # which need not know the word
    assert other.given == pixels


class Mixed(nn.Module):  # type: ignore[misc]  # as above
    """A layer that is trained, one that is not, one whose weight has no part in the output, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.first = nn.Linear(3, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.empty = nn.Parameter(torch.ones(0))
        self.register_buffer("kept", torch.tensor([1.0, 70_000.0]))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("count", torch.tensor([1, 2]))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """All of them."""
        return (self.last(self.frozen(self.first(x))),)


def test_gradients_are_those_of_autograd_in_the_order_of_the_model() -> None:
    """Of each pass alone, times the scale; and nothing is left in the model: no gradient, no hook."""
    model = Mixed()
    step = forward(model, {"x": torch.eye(3)}, CPU, amp=False)
    names = ["last.weight", "last.bias", "first.weight", "first.bias"]
    plain = torch.autograd.grad(step.loss, [model.get_parameter(name) for name in names], retain_graph=True)
    for scale in (1.0, 4.0, 1.0):
        found = gradients(model, step.loss, scale)
        assert list(found) == names
        largest = [float(gradient.abs().max()) * scale for gradient in plain]
        assert [one.absmax for one in found.values()] == pytest.approx(largest)
    assert all(parameter.grad is None for parameter in model.parameters())
    step.loss.backward()
    assert model.first.weight.grad is not None  # a hook of ours would have let it go


def test_a_backward_pass_that_fails_leaves_no_hook() -> None:
    model = Mixed()
    step = forward(model, {"x": torch.eye(3)}, CPU, amp=False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradients(model, step.loss.detach(), 1.0)
    step.loss.backward()
    assert model.first.weight.grad is not None


def test_what_is_measured_of_a_model_is_what_its_checkpoint_holds() -> None:
    """Parameters, trained or not, and buffers that are saved; of integers and of nothing there is no figure."""
    linear = [f"{layer}.{kind}" for layer in ("first", "frozen", "last") for kind in ("bias", "weight")]
    stats = parameter_stats(Mixed())
    assert sorted(stats) == sorted([*linear, "kept", "unused"])
    assert (stats["kept"].absmax, stats["kept"].fp16_overflow) == (70_000.0, 1)


def test_of_weights_that_are_nowhere_nothing_is_told() -> None:
    """As of a model that is built without memory, and that nothing fills in."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("here", torch.ones(1))
    assert [name for name, _ in tensors_of(model)] == ["here"]
