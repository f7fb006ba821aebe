"""Writing down what a float16 run writes: the values of a decoder's attention and feed-forward, in order.

The families of Gemma share these two blocks (transformers 5.23, modeling_gemma3.py and modeling_gemma3n.py); what
differs is what they normalise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gemma_doctor.architectures.base import Kind, Value
from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.expressions import (
    AfterNorm,
    Input,
    Linear,
    Pooled,
    Product,
    Repeated,
    Rotated,
    Shifted,
    Slice,
    Times,
    Unbounded,
)
from gemma_doctor.tensors import FP16_MAX

__all__ = ["Ledger", "activated"]

_NEVER_GROW = frozenset({"gelu_pytorch_tanh", "gelu", "silu", "relu"})
"""Activations of transformers that are one fused operation and never grow a value."""

_PLAIN_ROPE = frozenset({"default", "linear", "dynamic", "llama3"})
"""Rotary embeddings whose attention factor is 1 (transformers 5.23, modeling_rope_utils.py)."""


@dataclass(slots=True)
class Ledger:
    """The values of a model, in the order of writing.

    Attributes:
        values: The values so far.
    """

    values: list[Value] = field(default_factory=list)

    def module(self, name: str, kind: Kind, source: Input, *, limit: float = FP16_MAX) -> Input:
        """Write down a module's output.

        Args:
            name: The module.
            kind: What it does.
            source: What its output is made of.
            limit: Largest magnitude that it may have.

        Returns:
            The source.
        """
        self.values.append(Value(name, kind, source, limit, module=name))
        return source

    def inner(self, name: str, what: str, kind: Kind, source: Input, *, limit: float = FP16_MAX) -> Input:
        """Write down what a module writes inside; ``what`` says what it is.

        Returns:
            The source.
        """
        self.values.append(Value(f"{name} ({what})", kind, source, limit))
        return source

    def state(self, name: str, stream: str, source: Input, *, module: str | None = None) -> Input:
        """Write down a state of a residual stream.

        Returns:
            The source.
        """
        self.values.append(Value(name, "residual", source, FP16_MAX, stream, module))
        return source

    def linear(self, name: str, source: Input, *, bias: bool = False) -> Input:
        """Write down a linear layer's output.

        Returns:
            What it is made of.
        """
        product: Input = Linear(f"{name}.weight", source)
        return self.module(name, "linear", Shifted(f"{name}.bias", product) if bias else product)

    def norm(self, name: str, channels: int, *, plus_one: bool = False) -> Input:
        """Write down a norm's output.

        Returns:
            What it is made of.
        """
        return self.module(name, "norm", AfterNorm(f"{name}.weight", channels, plus_one))

    def logits(self, name: str, weight: str, final: Input, text: Section) -> None:
        """Write down the logits, divided by the cap where they are soft-capped: a cap below 1 enlarges them.

        Args:
            name: The head's module.
            weight: Its weight, which may be the embedding.
            final: What it takes.
            text: The text config.
        """
        growth = max(1.0, 1 / text.number("final_logit_softcapping", 1.0, 1e-6, 1e6))
        product: Input = Linear(weight, final)
        self.module(name, "linear", product if growth <= 1 else Times(growth, product))

    def rotated(self, name: str, what: str, text: Section, head: Input) -> Input:
        """Write down a head after rotary position embedding.

        Returns:
            What it is made of.
        """
        return self.inner(name, f"{what} rotated", "other", _rotated(text, head))

    def attention(self, name: str, text: Section, scores: Input, value: Input, *, eager: bool = False) -> Input:
        """Write down an attention's scores and its mix of values.

        Args:
            name: The attention's module.
            text: The text config.
            scores: The scores. Eager attention writes them before it scales them; the fused ones write neither.
            value: What the values are made of.
            eager: Whether the model's default is eager attention: its scores are then written like everything else.

        Returns:
            The heads side by side.
        """
        self.inner(name, "scores", "product" if eager else "scores", scores)
        head, heads = text.extent("head_dim", 256), text.repeats("num_attention_heads", 8)
        return self.inner(name, "mix of values", "attention", Repeated(Pooled(Slice(value, head)), heads))

    def gated(self, name: str, gate: Input, up: Input) -> Input:
        """Write down a gated unit's product and what is projected down.

        Args:
            name: The feed-forward's module.
            gate: The gate, activated.
            up: The other side.

        Returns:
            What the down projection gives.
        """
        product = self.inner(name, "gate * up", "product", Product(gate, up))
        return self.linear(f"{name}.down_proj", product)


def activated(config: Section, key: str, source: Input) -> Input:
    """What an activation gives: nothing larger than its input, if it is one of those that are known.

    Args:
        config: The section that names it.
        key: The key that does.
        source: Its input.
    """
    name = config.text(key) or "gelu_pytorch_tanh"
    return source if name in _NEVER_GROW else Unbounded(f"the activation {name!r} is not known")


def _rotated(text: Section, source: Input) -> Input:
    scaled = next((kind for kind in sorted(_rope_types(text)) if kind not in _PLAIN_ROPE), None)
    return Rotated(source) if scaled is None else Unbounded(f"rotary embedding of type {scaled!r} scales its result")


def _rope_types(text: Section) -> set[str]:
    """Types of rotary embedding that a config names: for all layers, or by type of layer."""
    found = set()
    for key in ("rope_scaling", "rope_parameters"):
        section = text.child(key)
        children = [section.child(name) for name, value in section.values.items() if isinstance(value, dict)]
        for part in (section, *children):
            found |= {kind for kind in (part.text("rope_type"), part.text("type")) if kind is not None}
    return found
