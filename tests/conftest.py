"""How Hypothesis searches: the same examples on every run, or (``--hypothesis-profile=deep``) new ones, and many.

And Triton's kernels run in its interpreter, on the CPU; it decides that when it is imported. Where a GitHub workflow
runs the tests, what they print is no workflow's output. Garbage is looked for among what tests make, and not among the
million objects that were there before them.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# No deadline: the first call of a kernel compiles it, and the machines that run this are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile(
    "deep",
    deadline=None,
    max_examples=20_000,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")

os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at a time, and models so small that threads mostly wait
for _name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
    os.environ.pop(_name, None)


def pytest_collection_finish() -> None:
    """Every module is in memory by now, and ``verify`` collects garbage several times in a run: half a second each."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end Python clears all away, or nanobind calls what is left a leak, below the closing line."""
    gc.unfreeze()


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as of what a shell starts in the background, and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """A command that has changed a file in place hears Ctrl-C no more; the next test does."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
