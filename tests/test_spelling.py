"""What a misspelt name was meant to be."""

from __future__ import annotations

import pytest

from gemma_doctor.spelling import closest, did_you_mean

KNOWN = ("GD101", "GD104", "GD405", "rescale-conv", "rescale-residual", "upcast-conv")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("GD140", "GD104"),  # neighbours swapped are one slip
        ("gd104", "GD104"),
        ("GD10", "GD101"),  # as near as GD104: the first known one
        ("rescale-cnv", "rescale-conv"),
        ("rescaleconv", "rescale-conv"),
        ("upcats-conv", "upcast-conv"),
    ],
)
def test_the_nearest_name_is_proposed(word: str, meant: str) -> None:
    assert closest(word, KNOWN) == (meant,)


@pytest.mark.parametrize("word", ["", "x", "GGUF", "a-thing-of-its-own", "GD104" * 20])
def test_nothing_is_proposed_for_what_is_like_nothing(word: str) -> None:
    assert closest(word, KNOWN) == ()


def test_several_come_nearest_first() -> None:
    assert closest("rescale-con", (*KNOWN, "rescale-cone"), 3) == ("rescale-conv", "rescale-cone")
    assert closest("GD401", KNOWN, 3) == ("GD101", "GD405")


def test_a_message_names_one_or_all() -> None:
    assert did_you_mean("rescal-conv", KNOWN) == "; did you mean 'rescale-conv'?"
    assert did_you_mean("zzz", ["b", "a"]) == "; known are a, b"
