"""Names that people read: nothing is interpreted, nothing is too long, nothing is lost when they are folded."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_doctor.reports.names import elide, fold, safe_text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("model.layers.0.weight", "model.layers.0.weight"),
        ("größe.重み", "größe.重み"),
        ("[bold red]x[/]", "[bold red]x[/]"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\r\nb\tc\0", r"a\r\nb\tc\x00"),
        ("a\u202egnp.b", r"a\u202egnp.b"),
        ("a\u2066b\u200b\ufeff", r"a\u2066b\u200b\ufeff"),
        ("a\u2028b\x85", r"a\u2028b\x85"),
        ("a\ud800b", r"a\ud800b"),
        ("a\U000e0041", r"a\U000e0041"),
    ],
)
def test_what_a_terminal_might_act_upon_is_escaped(name: str, shown: str) -> None:
    assert safe_text(name) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_safe_text_is_one_line_of_printable_characters(text: str) -> None:
    safe = safe_text(text)
    assert not {unicodedata.category(char) for char in safe} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert safe_text(safe) == safe


def test_an_elided_name_keeps_its_tail() -> None:
    name = "model.vision_tower.timm_model.blocks.2.21.attn.key.down_conv.weight"
    assert elide(name, 40) == "model.vi….2.21.attn.key.down_conv.weight"
    assert elide(name, len(name)) == name


@given(st.text(max_size=60), st.integers(1, 80))
def test_an_elided_name_fits(name: str, width: int) -> None:
    assert len(elide(name, width)) <= width


def test_layers_fold_into_ranges() -> None:
    names = [f"m.layers.{layer}.self_attn.{part}.weight" for layer in (20, 21, 22, 24, 29, 30) for part in "kv"]
    assert [pattern for pattern, _ in fold(names)] == [
        "m.layers.{20..22,24,29,30}.self_attn.k.weight",
        "m.layers.{20..22,24,29,30}.self_attn.v.weight",
    ]


def test_two_numbers_fold_along_the_one_that_varies() -> None:
    names = ["blocks.2.30.w", "blocks.2.34.w", "blocks.1.7.w", "head.w"]
    assert [pattern for pattern, _ in fold(names)] == ["blocks.2.{30,34}.w", "blocks.1.7.w", "head.w"]


def test_only_whole_components_are_layer_numbers() -> None:
    assert [pattern for pattern, _ in fold(["conv1.w", "conv2.w", "a.01.w", "a.1.w"])] == [
        "conv1.w",
        "conv2.w",
        "a.01.w",
        "a.1.w",
    ]


def test_names_that_look_like_patterns_stay_apart() -> None:
    names = ["a.{1,2}.w", "a.1.w", "a.2.w", "a.#.w"]
    assert fold(names) == [("a.{1,2}.w", ["a.{1,2}.w"]), ("a.{1,2}.w", ["a.1.w", "a.2.w"]), ("a.#.w", ["a.#.w"])]


components = st.sampled_from(["layers", "0", "1", "2", "10", "01", "w", "", "9999999", "٣"])


@given(st.lists(st.lists(components, max_size=4).map(".".join), max_size=12))
def test_folding_loses_and_doubles_nothing(names: list[str]) -> None:
    assert Counter(name for _, members in fold(names) for name in members) == Counter(names)
