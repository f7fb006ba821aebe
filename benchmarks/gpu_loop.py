"""The whole loop on real sizes, on a GPU: predicted, seen, mended, proved; and what else would help, beside it.

Usage: python benchmarks/gpu_loop.py MODEL [--scratch DIR] [--out DIR] [--only loop|capped|peers ...]

MODEL is ``gemma-3n-E2B`` or ``gemma-3-4b``. Builds a checkpoint of its real shapes with random bfloat16 weights in
which the published failures are planted, then lets the command line do what a user would: scan, verify, trace, repair,
verify again, against the original, and scan again. Then the mended model runs in float16 under a T4's memory (forward:
weights and their gradients together do not fit), and benchmarks/gpu_peers.py compares with other ways to run. Reports
go to the folder --out as JSON; a summary is printed. Weights are synthetic: nothing was measured on Google's.

With --scratch the checkpoints stay in DIR/MODEL, so that the parts can be run one after another, in several commands.
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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_models import build
from inputs import config_of

from gemma_doctor.demo import PUBLISHED

Sicken = Callable[[str, torch.Tensor], torch.Tensor]
SIZES = {"gemma-3n-E2B": ("--image-size", "768")}
"""What the processors of the models would say: a Gemma 3n's config does not name the size of pictures."""

T4_GIB = 16.0
"""Memory of a T4."""

GROWTH = 3000.0
"""Gain of Gemma 3's post norms: the residual stream of 34 layers then passes 1e5, as the published models' does."""


def main() -> None:
    """Take the way and print what each step says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(SICKENED))
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--out", type=Path, default=Path.cwd())
    parser.add_argument("--only", action="append", choices=tuple(PARTS), help="default: all, in this order")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        scratch = arguments.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, part in PARTS.items():
            if name in (arguments.only or PARTS):
                _timed(name, partial(part, arguments.model, scratch / arguments.model, arguments.out))


def _input(model: str) -> list[str]:
    return ["--device", "cuda", "--seq-len", "256", *SIZES.get(model, ())]


def _loop(model: str, scratch: Path, out: Path) -> None:
    """Build, scan, verify, repair, verify, scan."""
    sick, mended, trace = scratch / "sick", scratch / "mended", out / f"{model}-trace.json"
    _timed("build", lambda: build(sick, config_of(model), SICKENED[model]))
    run = _input(model)
    _tool("scan", str(sick), "--json", str(out / f"{model}-scan.json"))
    _tool("verify", str(sick), *run, "--trace", str(trace), "--json", str(out / f"{model}-before.json"))
    _tool("repair", str(sick), "--output", str(mended), "--calibration", str(trace))
    _tool("verify", str(mended), *run, "--against", str(sick), "--json", str(out / f"{model}-after.json"))
    _tool("scan", str(mended), "--json", str(out / f"{model}-scan-after.json"))
    for name in ("before", "after"):
        print(name, json.dumps(_summary(json.loads((out / f"{model}-{name}.json").read_text()))))


def _capped(model: str, scratch: Path, out: Path) -> None:
    """The mended model's float16 forward passes under a T4's memory; the float32 reference would not fit there."""
    run = [*_input(model), "--memory-limit", f"{T4_GIB:g}", "--no-backward", "--reference", "none"]
    report = out / f"{model}-capped.json"
    _tool("verify", str(scratch / "mended"), *run, "--json", str(report))
    read = json.loads(report.read_text())
    print("capped", json.dumps({"findings": len(read["findings"]), "peak": read["verification"]["peak_memory"]}))


def _peers(model: str, scratch: Path, out: Path) -> None:
    """The other ways to run, in a process of their own."""
    script = Path(__file__).with_name("gpu_peers.py")
    folders = [str(scratch / name) for name in ("sick", "mended")]
    command = [sys.executable, str(script), *folders, *_input(model), "--out", str(out / f"{model}-peers.json")]
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
    """The published convolutions: rows so large that their sums leave float16."""
    if name in PUBLISHED:
        values.flatten(1)[:4] *= 2.0**12
    return values


def _gemma3(name: str, values: torch.Tensor) -> torch.Tensor:
    """Post norms with a gain of 3,000: what each layer adds to the residual stream."""
    if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
        return values + GROWTH
    return values


SICKENED: dict[str, Sicken] = {"gemma-3n-E2B": _gemma3n, "gemma-3-4b": _gemma3}

PARTS: dict[str, Callable[[str, Path, Path], None]] = {"loop": _loop, "capped": _capped, "peers": _peers}


if __name__ == "__main__":
    main()
