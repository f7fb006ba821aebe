"""What a model family is, as data: the words in which every family is declared.

A family's file turns a parsed ``config.json`` into a :class:`Model`: the tensors it needs, what feeds and
what follows each convolution, which layers share KV, which key layouts loaders know. Rules and passes read
these declarations and hold no knowledge of any family themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from gemma_doctor.architectures.config import Section
from gemma_doctor.architectures.expressions import Input
from gemma_doctor.tensors import FP16_MAX, Role, TensorInfo

__all__ = [
    "Absorber",
    "Conv",
    "Expected",
    "Family",
    "KeyLayout",
    "Kind",
    "Model",
    "Need",
    "Norm",
    "Reader",
    "Rescaling",
    "SharedEps",
    "SharedKV",
    "Value",
]

Need: TypeAlias = Literal["required", "optional", "shared-kv", "tied-head", "stem-bias"]
"""Why a tensor may be absent: never; always may; only in a layer that shares KV; because the head is tied;
because the checkpoint is older than timm 1.0.17 (stem bias)."""

Kind: TypeAlias = Literal[
    "embedding", "norm", "linear", "conv", "product", "scores", "attention", "residual", "altup", "other"
]
"""What kind of operation writes a value."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that the architecture knows.

    Attributes:
        shape: Its shape.
        role: What it does.
        module: Class of the module that owns it, such as ``"Conv2d"``.
        need: Whether, and when, it may be absent.
        rows: What the first axis runs over: output channels, input channels where the product is ``x @ W``, or
            the experts of a mixture.
        plus_one: Whether the module multiplies by 1 + this gain, so that zeros are its neutral element.
        wide: Whether transformers keeps it in float32 on purpose where the rest is float16.
        bound: Whether it is a clamp's bound, for which infinity means that there is none.
    """

    shape: tuple[int, ...]
    role: Role
    module: str
    need: Need = "required"
    rows: Literal["outputs", "inputs", "experts"] = "outputs"
    plus_one: bool = False
    wide: bool = False
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Norm:
    """The normalisation that reads a convolution's output.

    Attributes:
        weight: Name of its gain.
        eps: Its eps.
        squares_in: ``"input"`` where it squares in its input's dtype, so that float16 has a window: magnitudes
            of 256 and more overflow in the square and the position silently becomes zero; below 2**-12 the
            square underflows (timm 1.0.31 layers/fast_norm.py, rms_norm2d). ``"float32"`` where it upcasts.
    """

    weight: str
    eps: float
    squares_in: Literal["input", "float32"]


@dataclass(frozen=True, slots=True)
class Absorber:
    """Who takes back the factor 2**-k of a rescaled convolution, if no norm follows: multiply by 2**k.

    Attributes:
        tensor: Name of the tensor multiplied by 2**k.
        relation: ``"gain"`` (a layer scale behind it), ``"reader"`` (the product that reads it) or ``"dual"``
            (the other side of a dot product).
    """

    tensor: str
    relation: Literal["gain", "reader", "dual"]


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution and its surroundings.

    Attributes:
        source: What bounds its input.
        taps: Kernel positions (kh * kw).
        depthwise: Whether each output channel reads one input channel only, and no other reads that one.
        norm: The norm that directly reads its output; None where there is none.
        absorber: Who compensates a rescaling where no norm does; None where the norm does or nobody can.
        bias: Name of its bias, scaled with it; None where it has none.
    """

    source: Input
    taps: int
    depthwise: bool
    norm: Norm | None = None
    absorber: Absorber | None = None
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that a float16 run writes.

    Attributes:
        name: The module that writes it, and what it is where the module writes several; in canonical names.
        kind: What kind of operation writes it.
        source: What it is made of.
        limit: Largest magnitude that it may have: 65504, or 256 where the next operation squares it.
        stream: The residual stream that it is a state of; None where it is none.
        module: The module whose output it is, as a trace calls it; None where no module returns it.
    """

    name: str
    kind: Kind
    source: Input
    limit: float = FP16_MAX
    stream: str | None = None
    module: str | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """A norm that takes out the factor of a rescaling, up to its eps.

    Attributes:
        norm: Name of its gain, or of its module where it has none.
        eps: Its eps.
        source: What it reads.
    """

    norm: str
    eps: float
    source: Input


@dataclass(frozen=True, slots=True)
class SharedEps:
    """An eps of the config that the readers of a rescaling have in common with other norms.

    Where those others read 2**-k times what they read as well, and the eps becomes 4**-k times what it was, no norm
    gives anything else than before: the rescaling is exact, however small the stream becomes.

    Attributes:
        path: Where the eps stands in ``config.json``.
        smaller: Names of the tensors that decide what the other norms read; multiplied by 2**-k too.
        values: Names of the values that become 2**-k times what they were with them.
    """

    path: tuple[str, ...]
    smaller: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rescaling:
    """Tensors that can be multiplied by powers of two together and leave the model the same function, but for eps.

    Attributes:
        name: How messages call it: a residual stream, or the weight that is scaled.
        smaller: Names of the tensors multiplied by 2**-k. A gain that one is added to counts as 1 + w.
        larger: Names of the tensors multiplied by 2**k.
        values: Names of the values that become 2**-k times what they were, and that decide over k.
        behind: Names of the values that shrink with them, and for which there is a rescaling of their own.
        eps: What the readers' eps takes to shrink with what they read; None where it cannot.
        readers: The norms that take the factor out.
        refused: Why it must not be done; None where it may.
    """

    name: str
    smaller: tuple[str, ...]
    larger: tuple[str, ...]
    values: tuple[str, ...]
    readers: tuple[Reader, ...]
    behind: tuple[str, ...] = ()
    eps: SharedEps | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class SharedKV:
    """A k/v tensor of a layer that reuses another layer's keys and values.

    Attributes:
        layer: The sharing layer.
        donor: The layer whose K and V *states* it uses (never its weights).
    """

    layer: int
    donor: int


@dataclass(frozen=True, slots=True)
class KeyLayout:
    """One way to name a family's tensors on disk.

    Attributes:
        name: How messages call it.
        prefixes: (prefix in this layout, prefix in the canonical layout), longest first.
        stale: Which supported loader does not find these names, or None where all do.
    """

    name: str
    prefixes: tuple[tuple[str, str], ...]
    stale: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """One model: a family with a config applied.

    All names are in the family's canonical layout (what the Hub holds); :meth:`canonical` translates.

    Attributes:
        family: ``"gemma3"``, ``"gemma3n"`` … or ``"generic"``.
        dtype: The config's dtype as torch names it (``"bfloat16"``), or None.
        expected: Every tensor that the architecture knows, in model order; empty where nothing is known.
        convs: Every convolution whose surroundings are known.
        shared_kv: The k/v tensors of layers that share KV (k_proj, v_proj, k_norm …).
        tied_head: (head, embedding) names where lm_head is tied, else None.
        pad_rows: tensor -> range of rows that copy the pad row on purpose.
        values: Every tensor that a float16 run writes, in the order of writing; empty where that is not declared.
        rescalings: What can be multiplied by powers of two and leave the model the same function.
        layouts: Key layouts that loaders know, the canonical one first.
        role: Role of a tensor that ``expected`` does not list, from its name and shape.
        as_stored: Which tensors of quantised weights are used in the dtype that they are stored in, whatever the rest
            is cast to; None where no quantiser wrote the weights.
    """

    family: str
    role: Callable[[TensorInfo], Role]
    dtype: str | None = None
    expected: Mapping[str, Expected] = field(default_factory=dict)
    convs: Mapping[str, Conv] = field(default_factory=dict)
    shared_kv: Mapping[str, SharedKV] = field(default_factory=dict)
    tied_head: tuple[str, str] | None = None
    pad_rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    values: tuple[Value, ...] = ()
    rescalings: tuple[Rescaling, ...] = ()
    layouts: tuple[KeyLayout, ...] = ()
    as_stored: Callable[[TensorInfo], bool] | None = None

    def canonical(self, name: str, layout: KeyLayout | None) -> str:
        """``name`` of the given layout, in the canonical one."""
        if layout is not None:
            for prefix, home in layout.prefixes:
                if name.startswith(prefix):
                    return home + name[len(prefix) :]
        return name


@dataclass(frozen=True, slots=True)
class Family:
    """How a config is recognised, and what turns it into a model.

    Attributes:
        classes: Names in the config's ``architectures`` that mean this family.
        model_types: Values of ``model_type`` that do, where ``architectures`` says nothing known.
        declare: The family with a config applied; None for a variant that it does not know.
    """

    classes: frozenset[str]
    model_types: frozenset[str]
    declare: Callable[[Section], Model | None]
