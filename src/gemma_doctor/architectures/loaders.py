"""What each loader does with the k/v tensors of layers that share KV.

Sources: transformers 4.53 to 5.23, ``modeling_gemma3n.py``, and 5.5.0 and 5.23, ``modeling_gemma4.py``, which do the
same; for Gemma 3n alone: vLLM, ``vllm/model_executor/models/gemma3n.py`` and pull request vllm-project/vllm#54917,
which stopped creating these modules; llama.cpp, the tensors that ``llama_model_gemma3n`` creates as required for every
layer, and its ``has_kv`` branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gemma_doctor.choices import Loader

__all__ = ["SHARED_KV_USE", "SharedKVUse"]


@dataclass(frozen=True, slots=True)
class SharedKVUse:
    """One loader's use of the k/v tensors of layers that share KV.

    Attributes:
        needs: Whether it fails, or computes something else, where they are absent.
        stored: What it does with stored ones, as a clause.
        absent: What it does where they are absent, as a clause.
    """

    needs: bool
    stored: str
    absent: str


SHARED_KV_USE: Mapping[Loader, SharedKVUse] = {
    "transformers": SharedKVUse(
        needs=False,
        stored="transformers 5.6 and later drop them on load and always reuse the donor's states",
        absent="transformers 5.6 and later have no such modules",
    ),
    "transformers-pre-5.6": SharedKVUse(
        needs=True,
        stored="transformers 4.53 to 5.5 use them wherever the KV cache is off, as in training",
        absent="transformers 4.53 to 5.5 initialise them at random, and use them wherever the KV cache is off",
    ),
    "vllm": SharedKVUse(
        needs=True,
        stored="vLLM loads them and reads the donor's cache instead",
        absent="vLLM before pull request 54917 refuses to load the model (it wants every k_norm)",
    ),
    "llama.cpp": SharedKVUse(
        needs=True,
        stored="llama.cpp loads them and reads the donor's cache instead",
        absent="llama.cpp requires them in every layer and refuses to load the model",
    ),
}
"""Loader -> its use of them."""
