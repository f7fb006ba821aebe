"""What Gemma 3n's image encoder keeps for a backward pass, by the size of the picture: counted, nothing is computed.

Usage: PYTHONPATH=tests python benchmarks/encoder_activations.py

Prints a Markdown table. The encoder has its real size and no memory (torch's meta device): only sizes count.
"""

from __future__ import annotations

import torch
import torchvision_operators  # noqa: F401  # before timm
from timm import create_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

SIDES = (256, 512, 768)
GIB = 1 << 30


def main() -> None:
    """Print it."""
    print("| picture | kept in float16, GiB | kept in float32, GiB |")
    print("| --- | ---: | ---: |")
    models = {dtype: _encoder(dtype) for dtype in (torch.float16, torch.float32)}
    for side in SIDES:
        sizes = (f"{kept(model, side, dtype) / GIB:.1f}" for dtype, model in models.items())
        print(f"| {side} px | {' | '.join(sizes)} |")


def _encoder(dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = create_model("mobilenetv5_300m_enc", num_classes=0)
    return model.to(dtype)


def kept(model: nn.Module, side: int, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of one picture, parameters left out.

    Args:
        model: The encoder.
        side: Height and width of the picture in pixels.
        dtype: The dtype of both.
    """
    own = {StorageWeakRef(parameter.untyped_storage()) for parameter in model.parameters()}
    seen: dict[StorageWeakRef, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen.setdefault(StorageWeakRef(tensor.untyped_storage()), tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.forward_features(torch.zeros((1, 3, side, side), dtype=dtype, device="meta"))
    return sum(tensor.untyped_storage().nbytes() for memory, tensor in seen.items() if memory not in own)


if __name__ == "__main__":
    main()
