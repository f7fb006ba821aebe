"""What tracing costs in Python for each operation, seen on a CPU: the layers of Gemma 3n E2B, made narrow.

Usage: PYTHONPATH=tests python benchmarks/cpu_trace.py

Prints a Markdown table of a training step on one sequence of 8 tokens: as it is, under a torch dispatch mode that does
nothing, under one that views pass by, and traced with the measuring left out, since a CPU measures at once and a GPU
only starts to. The least processor time of twelve, which take turns, on one thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias
from unittest import mock

import torch
import torchvision_operators  # noqa: F401  # before whatever imports torchvision
import transformers
from dispatching import Empty
from inputs import E2B_CONFIG

from gemma_doctor.kernels import outputs
from gemma_doctor.verify import recording
from gemma_doctor.verify.native import NativeTrace, building
from gemma_doctor.verify.passing import views_pass
from gemma_doctor.verify.places import Places
from gemma_doctor.verify.tracing import Trace

ROUNDS = 12

NARROW = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
}


_Run: TypeAlias = "tuple[Callable[[], None], AbstractContextManager[object]]"
"""What runs, and in what."""


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.Gemma3nTextConfig(**{**E2B_CONFIG["text_config"], **NARROW})
    model = transformers.Gemma3nForCausalLM(config).eval()
    ids = torch.randint(8, 60, (1, 8))

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    with (empty := Empty()):
        step()
    with views_pass(), (passing := Empty()):
        step()
    places, recorded, module = Places.of(model), 0, building().result()
    if module is None:
        raise SystemExit("needs a C++ compiler")

    def recording(trace: Trace | NativeTrace) -> None:
        nonlocal recorded
        with _unmeasured(), places.watching(), trace:
            step()
        recorded = len(trace.events())

    def traced() -> None:
        recording(Trace(places))

    def below() -> None:
        recording(NativeTrace(module, places, 1 << 28))

    def unseen() -> None:
        with views_pass(), Empty():
            step()

    runs: dict[str, _Run] = {
        "bare": (step, nullcontext()),
        "empty dispatch mode": (step, Empty()),
        "empty dispatch mode, views pass": (unseen, nullcontext()),
        "traced, recorded in Python": (traced, nullcontext()),
        "traced, recorded in C++": (below, nullcontext()),
    }
    times = _least(runs)
    print(f"{empty.calls:,} operations, {passing.calls:,} without views, {recorded:,} outputs\n")
    print("| step | ms | us an operation beyond the bare step |\n| --- | ---: | ---: |")
    for what, seconds in times.items():
        print(f"| {what} | {1e3 * seconds:,.0f} | {1e6 * (seconds - times['bare']) / empty.calls:.1f} |")


@contextmanager
def _unmeasured() -> Iterator[None]:
    """While it lasts, nothing is measured. A mock would keep the tensors."""

    def nothing(_tensors: Sequence[torch.Tensor]) -> outputs.Launched:
        return outputs.Launched(())

    with mock.patch.object(recording, "launch", nothing), mock.patch.object(outputs, "launch", nothing):
        yield


def _least(runs: Mapping[str, _Run]) -> dict[str, float]:
    """Least processor time of each, in seconds; they take turns."""
    least = dict.fromkeys(runs, math.inf)
    for _ in range(ROUNDS):
        for what, (run, around) in runs.items():
            with around:
                started = time.process_time()
                run()
                least[what] = min(least[what], time.process_time() - started)
    return least


if __name__ == "__main__":
    main()
