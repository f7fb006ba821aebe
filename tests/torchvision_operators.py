"""Lets torchvision be imported beside a torch for CPUs; timm and transformers need its transforms, plain Python.

The Python Package Index has torchvision for torch with CUDA only. Its compiled part does not load beside a torch for
CPUs, and then registering the shapes of these two operators, which nobody here calls, fails its import.

As a program it runs gemma-doctor's command line: ``python tests/torchvision_operators.py verify SOURCE``.
"""

from __future__ import annotations

from torch import library

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for _name in ("nms", "qnms"):
        library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if __name__ == "__main__":
    from gemma_doctor.__main__ import main

    main()
