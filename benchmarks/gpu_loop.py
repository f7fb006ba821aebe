"""The whole loop on real sizes, on a GPU: predicted, seen, mended, proved; and what else would help, beside it.

Usage: python benchmarks/gpu_loop.py MODEL [--scratch DIR] [--out DIR] [--only build|loop|capped|peers ...]
    [--modality text|image|audio ...] [--device cuda|cpu] [--image-size N] [--freeze GLOB ...]

MODEL is ``gemma-3n-E2B`` or ``gemma-3-4b``. Builds a checkpoint of its real shapes with random bfloat16 weights in
which the published failures are planted, then lets the command line do what a user would: scan, verify, trace, repair,
verify again, against the original, and scan again. Then the mended model runs in float16 under a T4's memory (forward:
weights and their gradients together do not fit), and benchmarks/gpu_peers.py compares with other ways to run. Reports
go to the folder --out as JSON; a summary is printed. Weights are synthetic: nothing was measured on Google's.

``gemma-3n-encoder`` is Gemma 3n's image encoder at its real size in front of the demo's small text model: what the
image runs show, where there is no GPU (``--device cpu --image-size 256 --modality image``, 6 GB of memory).

With --scratch the checkpoints stay in DIR/MODEL, so that the parts can be run one after another, in several commands;
docs/real-size.md says how, and how much memory each takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_models import build
from inputs import config_of

from gemma_doctor.choices import MODALITIES
from gemma_doctor.demo import CONFIG, PUBLISHED

Sicken = Callable[[str, torch.Tensor], torch.Tensor]
SIDE = 768
"""Pixels that Gemma 3n's processor gives its encoder; the config does not name them."""

T4_GIB = 16.0
"""Memory of a T4."""

SPREAD = 0.5
"""Standard deviation of the logarithm of the lengths of a trained convolution's rows: 0.39 to 0.79 in silero-vad 6.2.3,
whose weights tests/requirements-weights.txt installs."""

GROWTH = 3000.0
"""Gain of Gemma 3's post norms: the residual stream of 34 layers then passes 1e5, as the published models' does."""


@dataclass(frozen=True, slots=True)
class Loop:
    """One model, and how it is run.

    Attributes:
        model: Its name.
        scratch: Where its checkpoints lie.
        out: Where the reports go.
        device: Where it runs.
        words: What ``verify`` is told of the inputs.
        frozen: Parameters that it is told not to train.
    """

    model: str
    scratch: Path
    out: Path
    device: str
    words: tuple[str, ...]
    frozen: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Where and with what ``verify`` and the peers run."""
        return ("--device", self.device, "--seq-len", "256", *self.words)

    def report(self, what: str) -> Path:
        """Where a report goes."""
        return self.out / f"{self.model}-{what}.json"


def main() -> None:
    """Take the way and print what each step says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SICKENED))
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--out", type=Path, default=Path.cwd())
    parser.add_argument("--only", action="append", choices=tuple(PARTS), help="default: all, in this order")
    parser.add_argument("--modality", action="append", choices=MODALITIES, help="default: all that the model takes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--image-size", type=int, default=SIDE, help="of a Gemma 3n's pictures, in pixels")
    parser.add_argument("--freeze", action="append", metavar="GLOB", help="parameters that verify is not to train")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    words = [word for modality in arguments.modality or () for word in ("--modality", modality)]
    if "3n" in arguments.model:
        words += ["--image-size", str(arguments.image_size)]
    with ExitStack() as stack:
        scratch = arguments.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        loop = Loop(
            arguments.model,
            scratch / arguments.model,
            arguments.out,
            arguments.device,
            tuple(words),
            tuple(arguments.freeze or ()),
        )
        for name, part in PARTS.items():
            if name in (arguments.only or PARTS):
                _timed(name, partial(part, loop))


def _build(loop: Loop) -> None:
    """The sick checkpoint."""
    build(loop.scratch / "sick", CONFIGS[loop.model](), SICKENED[loop.model], loop.device)


def _loop(loop: Loop) -> None:
    """Scan, verify, repair, verify, scan."""
    sick, mended, trace = loop.scratch / "sick", loop.scratch / "mended", loop.report("trace")
    run = (*loop.inputs, *(word for glob in loop.frozen for word in ("--freeze", glob)))
    _tool("scan", str(sick), "--json", str(loop.report("scan")))
    _tool("verify", str(sick), *run, "--trace", str(trace), "--json", str(loop.report("before")))
    _tool("repair", str(sick), "--output", str(mended), "--calibration", str(trace))
    _tool("verify", str(mended), *run, "--against", str(sick), "--json", str(loop.report("after")))
    _tool("scan", str(mended), "--json", str(loop.report("scan-after")))
    for name in ("before", "after"):
        print(name, json.dumps(_summary(json.loads(loop.report(name).read_text()))))


def _capped(loop: Loop) -> None:
    """The mended model's float16 forward passes under a T4's memory; the float32 reference would not fit there."""
    run = [*loop.inputs, "--memory-limit", f"{T4_GIB:g}", "--no-backward", "--reference", "none"]
    report = loop.report("capped")
    _tool("verify", str(loop.scratch / "mended"), *run, "--json", str(report))
    read = json.loads(report.read_text())
    print("capped", json.dumps({"findings": len(read["findings"]), "peak": read["verification"]["peak_memory"]}))


def _peers(loop: Loop) -> None:
    """The other ways to run, in a process of their own."""
    script = Path(__file__).with_name("gpu_peers.py")
    folders = [str(loop.scratch / name) for name in ("sick", "mended")]
    command = [sys.executable, str(script), *folders, *loop.inputs, "--out", str(loop.report("peers"))]
    print(f"\n$ {' '.join(command[1:])}", flush=True)
    subprocess.run(command, check=True)


def _tool(*words: str) -> None:
    """One command of the tool, its output shown; exit code 1 means findings."""
    command = [sys.executable, "-m", "gemma_doctor", *words]
    print(f"\n$ gemma-doctor {' '.join(words)}", flush=True)
    _timed("took", lambda: print("exit code", subprocess.run(command, check=False).returncode, flush=True))


def _timed(what: str, work: Callable[[], object]) -> None:
    started = time.perf_counter()
    work()
    print(f"{what} {time.perf_counter() - started:.1f} s", flush=True)


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a verification that the table holds."""
    runs = report["verification"]["runs"]
    return {
        "findings": [finding["rule"] for finding in report["findings"]],
        "peak_memory": report["verification"]["peak_memory"],
        **{
            run["modality"]: {
                key: run[key]
                for key in ("drift", "bfloat16_drift", "against_drift", "loss", "reference_loss", "seconds")
            }
            for run in runs
        },
    }


def _gemma3n(name: str, values: torch.Tensor) -> torch.Tensor:
    """The published convolutions, as large as published.

    Rows of different lengths, as trained convolutions have them: a few rows that drown all others would leave almost
    nothing behind the norm and its GELU wherever they happen to be negative, which no trained model can afford.
    """
    if name not in PUBLISHED:
        return values
    generator = torch.Generator(values.device).manual_seed(sorted(PUBLISHED).index(name))
    lengths = torch.randn(len(values), generator=generator, device=values.device).mul(SPREAD).exp()
    spread = values * lengths.view(-1, *[1] * (values.ndim - 1))
    return spread * (PUBLISHED[name] / spread.abs().max())


def _gemma3(name: str, values: torch.Tensor) -> torch.Tensor:
    """Post norms with a gain of 3,000: what each layer adds to the residual stream."""
    if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
        return values + GROWTH
    return values


SICKENED: dict[str, Sicken] = {"gemma-3n-E2B": _gemma3n, "gemma-3n-encoder": _gemma3n, "gemma-3-4b": _gemma3}

CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {
    "gemma-3n-E2B": lambda: config_of("gemma-3n-E2B"),
    "gemma-3n-encoder": lambda: {**CONFIG, "vision_config": {**CONFIG["vision_config"], "model_args": {}}},
    "gemma-3-4b": lambda: config_of("gemma-3-4b"),
}

PARTS: dict[str, Callable[[Loop], None]] = {"build": _build, "loop": _loop, "capped": _capped, "peers": _peers}


if __name__ == "__main__":
    main()
