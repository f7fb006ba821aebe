"""What decoders of many families have in common: one form, filled in by a family's file.

An embedding, layers of grouped-query attention and a gated feed-forward, RMS norms, a final norm and a head that may be
tied (transformers 5.23, modeling_llama.py and the files generated from it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from gemma_doctor.architectures.base import Family, KeyLayout, Model, Rescaling, Value
from gemma_doctor.architectures.config import Section, config_dtype
from gemma_doctor.architectures.generic import guess_role
from gemma_doctor.architectures.pieces import Tensors, embedding, gated, linear, rms_norm, tied_head

__all__ = ["PRE_NORMS", "SANDWICH_NORMS", "Form", "Ranges", "decoder", "decoder_family", "kv_donors", "tied"]

PRE_NORMS = ("post_attention_layernorm",)
"""The norms of a layer behind ``input_layernorm``, where there is one before attention and one before feed-forward."""

SANDWICH_NORMS = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
"""The same, where there is one before and one behind each."""

Ranges: TypeAlias = tuple[tuple[Value, ...], tuple[Rescaling, ...]]

_PARTS = ("embed_tokens.", "layers.", "norm.")


@dataclass(frozen=True, slots=True)
class Form:
    """How a family builds its decoder, with the defaults of its config class.

    Attributes:
        family: How the family is called.
        stem: What its classes' names start with, such as ``"Llama"``.
        norm: Class of its norms.
        rows: ``vocab_size``.
        width: ``hidden_size``.
        inner: ``intermediate_size``.
        layers: ``num_hidden_layers``.
        heads: ``num_attention_heads``.
        groups: ``num_key_value_heads``; None for as many as heads.
        head: ``head_dim``; None for the width divided by the heads.
        tied: ``tie_word_embeddings``.
        table: Class of its embedding.
        norms: The norms of a layer behind ``input_layernorm``.
        plus_one: Whether norms multiply by 1 + w.
        head_norms: Whether queries and keys are normalised head by head.
        biased: Which projections of attention always have a bias; None where ``attention_bias`` decides over all.
        mlp_bias: Whether ``mlp_bias`` decides over biases of the feed-forward; it has none otherwise.
        ranges: What a float16 run writes and how that can be rescaled, by the names' prefix, the config, the head's
            module (None without one) and whether it is tied; None where that is not declared.
    """

    family: str
    stem: str
    norm: str
    rows: int
    width: int
    inner: int
    layers: int
    heads: int
    groups: int | None
    head: int | None
    tied: bool
    table: str = "Embedding"
    norms: tuple[str, ...] = PRE_NORMS
    plus_one: bool = False
    head_norms: bool = False
    biased: tuple[str, ...] | None = None
    mlp_bias: bool = False
    ranges: Callable[[str, Section, str | None, bool], Ranges] | None = None


def decoder_family(form: Form, *model_types: str) -> Family:
    """The family of the bare decoder and of the one with a head; its other classes are not known.

    Args:
        form: The decoder.
        model_types: Values of ``model_type``.
    """
    return Family(
        classes=frozenset({f"{form.stem}ForCausalLM", f"{form.stem}Model"}),
        model_types=frozenset(model_types),
        declare=lambda config: _declare(form, config),
    )


def decoder(form: Form, prefix: str, text: Section, head: str | None, *, tied: bool) -> Tensors:
    """Every tensor of a decoder.

    Args:
        form: How it is built.
        prefix: What the names start with, such as ``"model."``.
        text: Its config.
        head: Name of the head's module; None where it has none.
        tied: Whether the head is the embedding.
    """
    rows, width = text.extent("vocab_size", form.rows), text.extent("hidden_size", form.width)
    tensors = embedding(f"{prefix}embed_tokens", rows, width, form.table)
    for layer in range(text.repeats("num_hidden_layers", form.layers)):
        tensors |= _layer(form, f"{prefix}layers.{layer}.", text, width)
    tensors |= _norm(form, f"{prefix}norm", width)
    return tensors if head is None else tensors | tied_head(head, rows, width, tied=tied)


def tied(config: Section, text: Section, *, default: bool) -> bool:
    """Whether the head is the embedding: transformers 5 asks the top level, 4 the text section.

    Args:
        config: The whole config.
        text: Its text section.
        default: What the config class says where both are silent.
    """
    return config.flag("tie_word_embeddings", default=text.flag("tie_word_embeddings", default=default))


def kv_donors(text: Section, kinds: tuple[str, ...], sharing: int) -> dict[int, int]:
    """For every layer that shares KV the last one before them with the same kind of attention.

    Args:
        text: The text config.
        kinds: The kind of attention of each layer.
        sharing: ``num_kv_shared_layers`` where the config does not say it.

    Raises:
        IndexFileError: If every layer is to share, or one for which there is no donor.
    """
    layers = len(kinds)
    first_shared = layers - text.integer("num_kv_shared_layers", sharing, 0, layers - 1)
    last = {kind: layer for layer, kind in enumerate(kinds[:first_shared])}
    orphan = next((kind for kind in kinds[first_shared:] if kind not in last), None)
    if orphan is not None:
        text.refuse("num_kv_shared_layers", layers - first_shared, f"so few that a layer of {orphan!r} does not share")
    return {layer: last[kinds[layer]] for layer in range(first_shared, layers)}


def _declare(form: Form, config: Section) -> Model | None:
    """The decoder with its head, or without; None for a class with another head."""
    names = config.texts("architectures") or ()
    bare = f"{form.stem}Model" in names
    if not bare and any("For" in name and not name.endswith("ForCausalLM") for name in names):
        return None
    prefix, head = ("", None) if bare else ("model.", "lm_head")
    is_tied = tied(config, config, default=form.tied) and not bare
    values, rescalings = ((), ()) if form.ranges is None else form.ranges(prefix, config, head, is_tied)
    return Model(
        family=form.family,
        role=guess_role,
        dtype=config_dtype(config),
        expected=decoder(form, prefix, config, head, tied=is_tied),
        tied_head=("lm_head.weight", f"{prefix}embed_tokens.weight") if is_tied else None,
        values=values,
        rescalings=rescalings,
        layouts=_layouts(form.stem, bare=bare),
    )


def _layouts(stem: str, *, bare: bool) -> tuple[KeyLayout, ...]:
    """Both ways to write the prefix; transformers 5.23 reads either. vLLM fails on a name without a module."""
    if bare:
        return (
            KeyLayout(f"{stem} without a head", ()),
            KeyLayout(f"{stem} without a head, prefixed", (("model.", ""),)),
        )
    without = KeyLayout(
        f"{stem}, without prefix",
        tuple((part, f"model.{part}") for part in _PARTS),
        stale="vLLM, which looks for model.*",
    )
    return (KeyLayout(f"{stem}, as on the Hub", ()), without)


def _layer(form: Form, prefix: str, text: Section, width: int) -> Tensors:
    tensors = _norm(form, f"{prefix}input_layernorm", width) | _attention(form, f"{prefix}self_attn.", text, width)
    for norm in form.norms:
        tensors |= _norm(form, f"{prefix}{norm}", width)
    bias = form.mlp_bias and text.flag("mlp_bias", default=False)
    return tensors | gated(f"{prefix}mlp.", text.extent("intermediate_size", form.inner), width, bias=bias)


def _attention(form: Form, prefix: str, text: Section, width: int) -> Tensors:
    heads = text.repeats("num_attention_heads", form.heads)
    head = text.extent("head_dim", form.head or width // heads)
    queries = heads * head
    values = text.repeats("num_key_value_heads", form.groups or heads) * head
    all_of_them = ("q_proj", "k_proj", "v_proj", "o_proj")
    biased = form.biased
    if biased is None:
        biased = all_of_them if text.flag("attention_bias", default=False) else ()
    shapes = ((queries, width), (values, width), (values, width), (width, queries))
    tensors: Tensors = {}
    for name, (outputs, inputs) in zip(all_of_them, shapes, strict=True):
        tensors |= linear(f"{prefix}{name}", outputs, inputs, bias=name in biased)
    if form.head_norms:
        tensors |= _norm(form, f"{prefix}q_norm", head) | _norm(form, f"{prefix}k_norm", head)
    return tensors


def _norm(form: Form, module: str, channels: int) -> Tensors:
    return rms_norm(module, channels, form.norm, plus_one=form.plus_one)
