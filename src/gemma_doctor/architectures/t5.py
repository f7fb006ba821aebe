"""T5: encoder and decoder, or the encoder alone (transformers 5.23, modeling_t5.py and configuration_t5.py).

Its feed-forward is the classic case of an overflow in float16: ``wo`` adds up what relu or a gate let through, onto a
residual stream that nothing normalises. transformers therefore keeps ``wo`` in float32 where it loads the rest in
float16 (``_keep_in_fp32_modules``).
"""

from __future__ import annotations

from gemma_doctor.architectures.base import Expected, Family, KeyLayout, Model
from gemma_doctor.architectures.config import Section, config_dtype
from gemma_doctor.architectures.generic import guess_role
from gemma_doctor.architectures.pieces import Tensors, embedding, linear, rms_norm, tied_head

__all__ = ["FAMILY"]

_WITH_HEAD, _ENCODER = "T5ForConditionalGeneration", "T5EncoderModel"
_KNOWN = frozenset({_WITH_HEAD, "T5Model", _ENCODER})


def _declare(config: Section) -> Model | None:
    """The model with a head, without one, or the encoder; None for a class with another head."""
    names = config.texts("architectures") or (_WITH_HEAD,)
    name = next((name for name in names if name in _KNOWN), None)
    if name is None:
        return None
    tied = config.flag("tie_word_embeddings", default=True)
    tensors = _stacks(config, name)
    if name == _WITH_HEAD:
        rows, width = config.extent("vocab_size", 32_128), config.extent("d_model", 512)
        tensors |= tied_head("lm_head", rows, width, tied=tied)
    return Model(
        family="t5",
        role=guess_role,
        dtype=config_dtype(config),
        expected=tensors,
        tied_head=("lm_head.weight", "shared.weight") if tied and name == _WITH_HEAD else None,
        layouts=(KeyLayout("T5, as on the Hub", ()),),
    )


FAMILY = Family(classes=_KNOWN, model_types=frozenset({"t5"}), declare=_declare)


def _stacks(config: Section, name: str) -> Tensors:
    """The shared table, which each stack may hold once more, and the stacks."""
    rows, width = config.extent("vocab_size", 32_128), config.extent("d_model", 512)
    layers = config.repeats("num_layers", 6)
    tensors = embedding("shared", rows, width)
    tensors |= embedding("encoder.embed_tokens", rows, width, need="optional")
    tensors |= _stack("encoder.", config, layers, decodes=False)
    if name == _ENCODER:
        return tensors
    tensors |= embedding("decoder.embed_tokens", rows, width, need="optional")
    return tensors | _stack("decoder.", config, config.repeats("num_decoder_layers", layers), decodes=True)


def _stack(prefix: str, config: Section, layers: int, *, decodes: bool) -> Tensors:
    width = config.extent("d_model", 512)
    tensors: Tensors = {}
    for layer in range(layers):
        block = f"{prefix}block.{layer}.layer."
        tensors |= _attention(f"{block}0.SelfAttention.", config) | _norm(f"{block}0.layer_norm", width)
        if layer == 0:
            tensors |= _positions(f"{block}0.SelfAttention.", config)
        if decodes:
            tensors |= _attention(f"{block}1.EncDecAttention.", config) | _norm(f"{block}1.layer_norm", width)
        last = 2 if decodes else 1
        tensors |= _feed_forward(f"{block}{last}.DenseReluDense.", config, width)
        tensors |= _norm(f"{block}{last}.layer_norm", width)
    if decodes:  # an unused table of the checkpoints of 2020
        tensors |= _positions(f"{prefix}block.0.layer.1.EncDecAttention.", config, optional=True)
    return tensors | _norm(f"{prefix}final_layer_norm", width)


def _attention(prefix: str, config: Section) -> Tensors:
    width = config.extent("d_model", 512)
    inner = config.repeats("num_heads", 8) * config.extent("d_kv", 64)
    tensors: Tensors = {}
    for part in "qkv":
        tensors |= linear(f"{prefix}{part}", inner, width)
    return tensors | linear(f"{prefix}o", width, inner)


def _positions(prefix: str, config: Section, *, optional: bool = False) -> Tensors:
    """What is added to the scores for each distance and head: in the first layer, for all of them."""
    rows = config.extent("relative_attention_num_buckets", 32)
    heads = config.repeats("num_heads", 8)
    return embedding(f"{prefix}relative_attention_bias", rows, heads, need="optional" if optional else "required")


def _feed_forward(prefix: str, config: Section, width: int) -> Tensors:
    inner = config.extent("d_ff", 2048)
    gated = (config.text("feed_forward_proj") or "relu").startswith("gated-")
    tensors: Tensors = {}
    for name in ("wi_0", "wi_1") if gated else ("wi",):
        tensors |= linear(f"{prefix}{name}", inner, width)
    return tensors | {f"{prefix}wo.weight": Expected((width, inner), "linear", "Linear", wide=True)}


def _norm(module: str, channels: int) -> Tensors:
    return rms_norm(module, channels, "T5LayerNorm")
