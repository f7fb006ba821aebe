"""How Hypothesis searches: the same examples on every run, or (``--hypothesis-profile=deep``) new ones, and many."""

from __future__ import annotations

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
