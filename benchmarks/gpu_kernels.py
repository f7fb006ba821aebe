"""What the kernels for GPUs cost: ``PYTHONPATH=src python benchmarks/gpu_kernels.py [PART ...]``.

Needs one CUDA GPU, torch, triton and timm; builds its models with random weights and downloads nothing. The parts of
the statistics and the norms first compare their kernels with plain torch on the same GPU, and fail if they differ. Each
part prints its rows as it has them. TF32 is off, as a T4 has none. Medians of CUDA events, entrants in turns. While an
entrant of the statistics or the norms is being enqueued the GPU is still busy with something else, so that they are
timed without the host's part; norms go over several inputs in turn, which no cache holds together. The encoder is timed
with it, and from CUDA graphs without. But for torch.compile, which takes minutes to compile, no part takes much longer
than a minute on an H100.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_encoder import of_compiled, of_compiled_blocks, of_graphs, of_many_images, of_the_encoder
from gpu_norms import backward_of_norms, of_norms
from gpu_statistics import of_statistics
from table import HEAD, Row, line

PARTS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "statistics": of_statistics,
    "norms": of_norms,
    "norms-backward": backward_of_norms,
    "encoder": partial(of_the_encoder, backward=False),
    "encoder-graph": partial(of_graphs, backward=False),
    "encoder-many": partial(of_many_images, backward=False),
    "training": partial(of_the_encoder, backward=True),
    "training-graph": partial(of_graphs, backward=True),
    "training-many": partial(of_many_images, backward=True),
    "compiled-blocks": of_compiled_blocks,
    "compiled": partial(of_compiled, backward=False),
    "compiled-training": partial(of_compiled, backward=True),
}
"""By name: forward is ``encoder``, forward and backward ``training``."""


def main() -> None:
    """Compare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all, in this order")
    parser.add_argument("--side", type=int, default=768, help="height and width of the images")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16], help="images at a time; more in *-many")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each entrant, at most")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="after these, no more than three runs of an encoder"
    )
    options = parser.parse_args()
    unknown = sorted({*options.parts} - {*PARTS})
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", file=sys.stderr)
    print(HEAD, flush=True)
    for part in options.parts or PARTS:
        for row in PARTS[part](options):
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
