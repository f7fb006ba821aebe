"""A plan as people see it: what, why, at what cost and how exactly; what is left; at any width, and in a pipe."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gemma_doctor.plans import (
    Add,
    Applied,
    Cast,
    Clamp,
    Drop,
    Edit,
    Fingerprint,
    Left,
    Leftover,
    Plan,
    Reason,
    Rename,
    Scale,
    SetConfig,
    SetMetadata,
    WrittenFile,
    ZeroNonfinite,
)
from gemma_doctor.reports.plan import render_applied, render_brief, render_plan, render_unwritten
from gemma_doctor.reports.sheet import console_for
from gemma_doctor.tensors import TensorInfo

ANSI = re.compile(r"\x1b\[[0-9;]*m")
Draw = Callable[[Console], None]


def info(name: str, dtype: str = "BF16", nbytes: int = 128) -> TensorInfo:
    return TensorInfo(name, dtype, (8, 8), "model.safetensors", 1000, 1000 + nbytes)


def because(message: str, rule: str = "GD104", measure: float = 1) -> Reason:
    return Reason(rule, message, {"measure": measure})


def plan(edits: Sequence[Edit] = (), left: Sequence[Left] = ()) -> Plan:
    return Plan("1", "some model/", Fingerprint((), {}), tuple(edits), tuple(left))


TOWER = "m.tower.blocks"
SCALES = [
    Scale(
        tensor=f"{TOWER}.{index}.conv.weight",
        exponent=-3,
        pass_name="rescale-conv",
        exactness="eps",
        reason=because(f"Outputs can reach {index}00.", measure=index),
    )
    for index in range(5)
]
DROPS = [
    Drop(
        tensor=f"m.layers.{layer}.{part}.weight",
        pass_name="prune-shared-kv",
        exactness="exact",
        reason=because(f"Layer {layer} reuses layer 18.", "GD201"),
    )
    for layer in (20, 21, 22)
    for part in "kv"
]
OTHERS: list[Edit] = [
    ZeroNonfinite(tensor="n", pass_name="zero-nonfinite", exactness="lossy", reason=because("2 NaN.", "GD101")),
    Clamp(tensor="c", limit=65504.0, pass_name="clamp", exactness="lossy", reason=because("3 beyond.", "GD102")),
    Cast(tensor="w", dtype="F32", pass_name="upcast-conv", exactness="exact", reason=because("Sums.")),
    Add(tensor="b", dtype="F32", shape=(64,), beside="w", pass_name="add", exactness="exact", reason=because("New.")),
    Rename(
        tensor="lm.model.norm.weight",
        to="model.lm.norm.weight",
        pass_name="rename-keys",
        exactness="exact",
        reason=because("Stale.", "GD209"),
    ),
    SetConfig(
        path=("text_config", "dtype"),
        value="bfloat16",
        pass_name="cast-dtype",
        exactness="exact",
        reason=because("The config says float16.", "GD203"),
    ),
]
LEFT = [
    Left("GD108", "note", None, "5 notes: no pass mends it"),
    Left("GD101", "error", "x.weight", "mending it needs --unsafe"),
    Left("GD201", "warning", "m.layers.20.k.weight", "the loader needs it"),
    Left("GD201", "warning", "m.layers.21.k.weight", "the loader needs it"),
]
EVERY = plan([*SCALES, *DROPS, *OTHERS], LEFT)
TENSORS = {
    edit.tensor: info(edit.tensor) for edit in EVERY.edits if not isinstance(edit, Add | SetConfig | SetMetadata)
}
APPLIED = Applied(
    output=Path("/out/mended"),
    files=(WrittenFile("model.safetensors", 3000, "0" * 64, linked=False),),
    bytes_written=4_000_000,
    bytes_linked=2_000_000_000,
    seconds=0.51234,
    removed_leftovers=(
        Leftover(".a.gemma-doctor-1-00000000.partial", 5_000_000_000),
        Leftover(".a.gemma-doctor-1-00000000.replaced", 7, restored="a"),
    ),
    remarks=("model-2.safetensors: copied, not linked",),
)


def piped(draw: Draw) -> str:
    stream = io.StringIO()
    draw(console_for(stream))
    return stream.getvalue()


def on_terminal(draw: Draw, width: int) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, force_terminal=True, color_system="truecolor", markup=False, highlight=False
    )
    draw(console)
    return stream.getvalue()


def page(shown: Plan = EVERY) -> Draw:
    return lambda console: render_plan(shown, TENSORS, console)


def test_the_head_says_how_much_why_and_what_it_costs() -> None:
    # 13 tensors + 2 of 128 bytes; 6 are left out, one doubles, 256 bytes are new.
    assert len(TENSORS) == 15
    head, *_ = piped(page()).splitlines()
    assert head == (
        "Plan: 17 edits for GD101, GD102, GD104, GD201, GD203 and GD209. The tensors take 1.92 kB and become 1.54 kB."
    )
    same, *_ = piped(page(plan(SCALES))).splitlines()
    assert same == "Plan: 5 edits for GD104. The tensors take 1.92 kB and stay that size."


def test_a_pass_is_a_table_with_its_exactness_and_its_worst_reasons() -> None:
    text = piped(page(plan(SCALES)))
    assert text.partition("\n\n")[2] == (
        "rescale-conv (eps: the same function up to a norm's eps)\n"
        "  in m.tower.blocks.            edit    for  bytes\n"
        "  {0..4}.conv.weight (5)  times 2^-3  GD104      0\n"
        "  4.conv.weight\n      Outputs can reach 400.\n"
        "  3.conv.weight\n      Outputs can reach 300.\n"
        "  2.conv.weight\n      Outputs can reach 200.\n"
        "  and 2 more:\n      {0,1}.conv.weight (2)\n"
    )


def test_a_reason_that_holds_for_all_is_said_once() -> None:
    text = piped(page(plan(DROPS)))
    assert text.endswith(
        "  {20..22}.k.weight (3)  left out  GD201  -384 B\n"
        "  {20..22}.v.weight (3)  left out  GD201  -384 B\n"
        "      Layer {20..22} reuses layer 18.\n"
    )


@pytest.mark.parametrize(
    ("edit", "row", "exactness"),
    [
        (OTHERS[0], r"n +NaN and inf to 0 +GD101 +0", "lossy: changes the function"),
        (OTHERS[1], r"c +clamped to 65504 +GD102 +0", "lossy: changes the function"),
        (OTHERS[2], r"w +BF16 to F32 +GD104 +\+128 B", "exact: the same function"),
        (OTHERS[3], r"b +64 zeros, F32 +GD104 +\+256 B", "exact: the same function"),
        (OTHERS[4], r"lm\.model\.norm\.weight +to model\.lm\.… +GD209 +0", "exact: the same function"),
        (OTHERS[5], r"text_config\.dtype in config\.json +set to bfloat16 +GD203 +0", "exact: the same function"),
    ],
)
def test_every_kind_of_edit_has_its_words_and_its_cost(edit: Edit, row: str, exactness: str) -> None:
    text = piped(page(plan([edit])))
    assert re.search(f"^  {row}$", text, re.MULTILINE), text
    assert f"\n{edit.pass_name} ({exactness})\n" in text


def test_a_long_table_is_cut_and_says_where_all_of_it_is() -> None:
    many = [
        Cast(tensor=f"{letter}.x", dtype="F32", pass_name="p", exactness="rounded", reason=because("why"))
        for letter in "abcdefghijklmnop"
    ]
    text = piped(page(plan(many)))
    assert text.count(" to F32 ") == 10
    assert "\n  and 6 more such lines; --save-plan writes every edit\n" in text
    assert "(rounded: stored values are rounded)" in text


def test_what_is_left_is_said_with_its_reason_gravest_first() -> None:
    for draw in (page(), lambda console: render_brief(EVERY, TENSORS, console)):
        assert piped(draw).endswith(
            "\n\nLeft as it is:\n"
            "error GD101\n  x.weight\n      mending it needs --unsafe\n"
            "warning GD201\n  m.layers.{20,21}.k.weight (2)\n      the loader needs it\n"
            "note GD108\n  5 notes: no pass mends it\n"
        )


def test_the_brief_page_has_no_table() -> None:
    text = piped(lambda console: render_brief(EVERY, TENSORS, console))
    assert text.startswith("Plan: 17 edits ")
    assert "times 2^" not in text


@pytest.mark.parametrize(
    ("left", "line"),
    [
        ([], "Healthy, nothing to mend: no rule found anything."),
        (LEFT[:1], "Healthy, nothing to mend: no rule found anything but notes."),
        (LEFT, "Nothing is mended: see what is left, and why."),
    ],
)
def test_a_plan_without_edits_says_whether_that_is_good(left: list[Left], line: str) -> None:
    assert piped(page(plan((), left))).splitlines()[0] == line


def test_what_was_written_linked_and_cleared_is_said() -> None:
    text = piped(lambda console: render_applied(APPLIED, console, [("gemma-doctor scan x", "the copy")]))
    assert text == (
        "\nMended: /out/mended holds 2 files: 4 MB written and 2 GB hard-linked in 0.512 s, read back and compared "
        "with the source and the plan.\n"
        "Remark: model-2.safetensors: copied, not linked\n"
        "Remark: deleted .a.gemma-doctor-1-00000000.partial, 5 GB that a run that was killed had left\n"
        "Remark: a is back: a run that was killed had moved it to .a.gemma-doctor-1-00000000.replaced\n"
        "\nNext:\n  gemma-doctor scan x  # the copy\n"
    )


def test_what_was_not_written_is_said() -> None:
    text = piped(lambda console: render_unwritten("Why.", console, [("gemma-doctor repair x", "so")]))
    assert text == "\nNothing was written. Why.\n\nNext:\n  gemma-doctor repair x  # so\n"


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("draw", [page(), lambda console: render_applied(APPLIED, console)])
def test_nothing_is_wider_than_the_terminal(width: int, draw: Draw) -> None:
    lines = ANSI.sub("", on_terminal(draw, width)).splitlines()
    assert [line for line in lines if len(line) > width] == []
    assert all(line == line.rstrip() for line in lines)


def test_colours_only_repeat_what_words_say(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = on_terminal(page(), 80)
    assert "\x1b[1;31mlossy\x1b[0m" in coloured
    assert "\x1b" not in piped(page())
    monkeypatch.setenv("NO_COLOR", "1")
    plain = on_terminal(page(), 80)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", plain)
    assert ANSI.sub("", coloured) == ANSI.sub("", plain)


HOSTILE = ["[bold red]x[/bold red]", "a\x1b[31mred\x1b]0;title\x07", "a\r\nPlan: 0", "a\u202egnp", "x" * 10_000]


@given(st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=()), max_size=40), st.integers(20, 130))
def test_no_name_breaks_the_page(name: str, width: int) -> None:
    edits: list[Edit] = [
        Rename(tensor=name, to=name[::-1], pass_name=name, exactness="exact", reason=because(name, name)),
        SetConfig(path=(name,), value=name, pass_name=name, exactness="exact", reason=because(name, name)),
    ]
    shown = plan(edits, [Left(name, "note", name, name)])
    for text in (piped(page(shown)), ANSI.sub("", on_terminal(page(shown), width))):
        assert all(char.isprintable() or char == "\n" for char in text)
    assert not re.search("^Plan: 0", piped(page(shown)), re.MULTILINE)
