"""What people see: a verdict, folded findings, the largest convolutions, coverage; at any width, and in a pipe."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sample_reports import PUBLISHED, TOWER, finding, report, tensor
from sample_verifications import FAILURE, VERIFICATION, activation, verified

from gemma_doctor.records import Coverage, Proof, Report, Skipped, Suppressed
from gemma_doctor.reports.sheet import console_for, rendered
from gemma_doctor.reports.terminal import render, render_brief
from gemma_doctor.reports.wording import counted, parameters, size, verdict
from gemma_doctor.tensors import TensorStats
from gemma_doctor.verifications import LossScales, LossScaleTrial

ANSI = re.compile(r"\x1b\[[0-9;]*m")
Draw = Callable[[Report, Console], None]


def piped(shown: Report, draw: Draw = render) -> str:
    """What goes into a pipe."""
    stream = io.StringIO()
    draw(shown, console_for(stream))
    return stream.getvalue()


def on_terminal(shown: Report, width: int, draw: Draw = render) -> str:
    """What a colour terminal of this width gets."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=True,
        color_system="truecolor",
        markup=False,
        emoji=False,
        highlight=False,
    )
    draw(shown, console)
    return stream.getvalue()


def test_the_number_that_masks_hide_with_is_not_the_largest() -> None:
    """Transformers fills masks with -65504, and a sound model would seem to have no room left."""
    mask = activation("aten.where", stats=TensorStats(count=2, minimum=-65504.0, maximum=3.0))
    other = activation("aten.mul", stats=TensorStats(count=2, minimum=-9.0, maximum=4.0))
    run = replace(VERIFICATION.runs[0], first_failure=None)
    shown = replace(verified(replace(VERIFICATION, runs=(run,))), activations=(mask, other))
    assert "largest |x| 9, 13 bits below 65504, in aten.mul of" in piped(shown)
    assert mask.peak == 3.0


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (LossScaleTrial(64.0, "sound"), "loss scale 64 is sound"),
        (LossScaleTrial(64.0, "overflow", "layers.0"), "loss scale 64 overflows: gradients of layers.0"),
        (LossScaleTrial(64.0, "underflow", "layers.0"), "loss scale 64 loses gradients of layers.0"),
    ],
)
def test_of_one_loss_scale_no_window_is_told(trial: LossScaleTrial, said: str) -> None:
    run = replace(VERIFICATION.runs[0], loss_scales=LossScales((trial,)))
    assert f"\n  {said}\n" in piped(verified(replace(VERIFICATION, runs=(run,))))


def sick() -> Report:
    """Findings of every severity, 27 of them on layers, and everything else that is ever shown."""
    layers = [
        finding("GD104", "warning", f"{TOWER}blocks.1.{index}.pw_exp.conv.weight", f"Sum {index} over 256.", index)
        for index in range(27)
    ]
    full = report(
        [
            finding("GD004", "note", None, "The header has no 'format'."),
            finding("GD101", message="2 NaN among 64 elements."),
            *layers,
        ],
        [*PUBLISHED, tensor("a.weight")],
    )
    return replace(
        full,
        coverage=Coverage(
            8, 6, (Skipped("m.layers.0.w", "unknown dtype F3"), Skipped("m.layers.1.w", "unknown dtype F3"))
        ),
        suppressed=(Suppressed(finding(), "allow", "fine", "gemma-doctor.toml beside the checkpoint"),),
        remarks=("1 baseline entry in known.json no longer found: GD102 z; renew it",),
    )


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (report(), "Healthy. Every measured weight fits float16."),
        (replace(report(), target_dtype="bfloat16"), "Healthy. Every measured weight is finite."),
        (report([finding("GD004", "note")]), "Healthy: 1 note. Every measured weight fits float16."),
        (report([finding("GD104", "warning")]), "At risk: 1 warning. In float16: 1 convolution may overflow."),
        (report([finding(), finding()]), "Sick: 2 errors. Every measured weight fits float16."),
        (
            report([finding()], [tensor("a", stats=TensorStats(count=64, nan=2, inf=1, fp16_overflow=1))]),
            "Sick: 1 error. In float16: 3 weights NaN or inf, 1 weight becomes inf.",
        ),
        (
            report([finding()], [tensor("a", dtype="I64", stats=TensorStats(count=64, fp16_overflow=9))]),
            "Sick: 1 error. Every measured weight fits float16.",
        ),
        (
            replace(report([finding()]), coverage=Coverage(1200, 1)),
            "Could not tell, 1,199 of 1,200 tensors not measured: 1 error. Every measured weight fits float16.",
        ),
        (
            report(tensors=[]),
            "Could not tell, no tensor was measured. Nothing is known about its weights.",
        ),
        (
            replace(report(), suppressed=(Suppressed(finding(), "allow"),)),
            "Nothing new: 1 finding set aside. Every measured weight fits float16.",
        ),
        (
            replace(report([finding()]), suppressed=(Suppressed(finding(), "allow"),)),
            "Sick: 1 error, 1 finding set aside. Every measured weight fits float16.",
        ),
        (  # its rule is ignored, and it fails all the same
            verified(),
            (
                "Nothing new. Ran forward and backward in float16 with text and image: "
                f"{FAILURE.activation.op} in {FAILURE.activation.module} fails first."
            ),
        ),
        (
            verified(replace(VERIFICATION, runs=VERIFICATION.runs[1:])),
            "Sound. Ran forward and backward in float16 with image: no operation overflowed.",
        ),
    ],
)
def test_the_verdict_is_one_line_of_plain_words(shown: Report, line: str) -> None:
    assert verdict(shown) == line
    assert piped(shown).startswith(f"{line}\n")
    assert piped(shown, render_brief).startswith(f"{line}\n")


def test_findings_are_grouped_gravest_first_and_folded_worst_first() -> None:
    text = piped(sick())
    heads = re.findall(r"^(?:error|warning|note) .*$", text, re.MULTILINE)
    assert heads == [
        "error GD101 nonfinite-weight",
        "warning GD104 fp16-conv-overflow-risk (27 findings)",
        "note GD004 some-rule",
    ]
    assert re.findall(r"Sum (\d+) over 256", text) == ["26", "25", "24", "23", "22"]
    assert f"  and 22 more:\n      {TOWER}blocks.1.{{0..21}}.pw_exp.conv.weight (22)\n" in text


def test_findings_that_say_the_same_of_many_layers_are_said_once() -> None:
    layers = [
        finding("GD201", "warning", f"m.layers.{layer}.{part}_proj.weight", f"All 0, in layer {layer}, as in layer 18.")
        for layer in (20, 21, 22, 24)
        for part in "kv"
    ]
    text = piped(report(layers))
    assert text.count("All 0") == 1
    assert (
        "  m.layers.{20..22,24}.k_proj.weight (4)\n"
        "  m.layers.{20..22,24}.v_proj.weight (4)\n"
        "      All 0, in layer {20..22,24}, as in layer 18.\n"
    ) in text


def test_the_published_table() -> None:
    text = piped(
        report(tensors=[*reversed(PUBLISHED), tensor(f"{TOWER}stem.weight", 1.5, "conv"), tensor("big", 900.0)])
    )
    table = text[text.index("Largest") :].splitlines()[:7]
    assert table == [
        "Largest convolution weights (5 of 6)",
        "  in model.vision_tower.timm_model.      max abs  input budget  limit",
        "  msfa.ffn.pw_proj.conv.weight            98.000         0.653    256",
        "  blocks.2.21.attn.key.down_conv.weight   37.000         1.730    256",
        "  blocks.2.32.pw_exp.conv.weight          34.750         1.842    256",
        "  blocks.2.34.pw_exp.conv.weight          33.750         1.896    256",
        "  blocks.2.30.pw_exp.conv.weight          33.750         1.896    256",
    ]


def test_the_table_has_numbers_of_any_size() -> None:
    convs = [tensor(f"c.{exponent}.weight", 10.0**exponent, "conv") for exponent in (-9, 30)]
    text = piped(report(tensors=convs))
    assert re.search(r"30\.weight +1\.000e\+30 +1\.638e-26", text)
    assert re.search(r"-9\.weight +1\.000e-09 +1\.638e\+13", text)


@pytest.mark.parametrize("shown", [report(), replace(report(tensors=PUBLISHED), target_dtype="bfloat16")])
def test_no_table_without_convolutions_or_for_bfloat16(shown: Report) -> None:
    assert "Largest" not in piped(shown)


def test_coverage_what_was_left_out_and_what_was_set_aside_are_shown() -> None:
    text = piped(sick())
    assert "\nMeasured 6 of 8 tensors: 384 parameters, 768 B in 0.5 s (1.54 kB/s).\n" in text
    assert "\nNot measured: 2 tensors, unknown dtype F3\n  m.layers.{0,1}.w (2)\n" in text
    assert "\nSet aside: 1 finding, by allow in gemma-doctor.toml beside the checkpoint.\n" in text
    assert "\nRemark: 1 baseline entry in known.json no longer found: GD102 z; renew it\n" in text


def test_a_certificate_says_what_it_takes_for_granted() -> None:
    text = piped(replace(report(), proof=Proof(40, 40, ("gains stay", "no dropout"))))
    assert "Proved safe: 40 of 40 values of a float16 run: it cannot overflow in the forward pass, whatever the" in text
    assert "\nAssumed: gains stay; no dropout.\n" in text
    assert "Assumed" not in piped(replace(report(), proof=Proof(40, 39, ("gains stay",))))


def test_the_next_commands_can_be_copied() -> None:
    stream = io.StringIO()
    commands = [("gemma-doctor rule GD101", "what it means"), ("gemma-doctor scan 'some model/'", "every number")]
    render(sick(), console_for(stream), commands)
    assert stream.getvalue().endswith(
        "\nNext:\n  gemma-doctor rule GD101  # what it means\n  gemma-doctor scan 'some model/'  # every number\n"
    )
    assert "Next" not in piped(sick())


def test_a_command_is_never_broken() -> None:
    stream = io.StringIO()
    command = f"gemma-doctor scan {'x' * 100}"
    render(sick(), Console(file=stream, width=60, force_terminal=True, color_system=None), [(command, "every number")])
    assert stream.getvalue().endswith(f"\n  {command}\n")


def test_the_brief_report_has_findings_and_gaps_only() -> None:
    text = piped(sick(), render_brief)
    assert "error GD101" in text
    assert "Not measured: 2 tensors" in text
    assert not re.search("Largest|Measured|Next|judged", text)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("draw", [render, render_brief])
def test_nothing_is_wider_than_the_terminal(width: int, draw: Draw) -> None:
    lines = ANSI.sub("", on_terminal(sick(), width, draw)).splitlines()
    assert [line for line in lines if len(line) > width] == []
    assert all(line == line.rstrip() for line in lines)


def test_a_narrow_terminal_keeps_the_layers_of_long_names_and_all_numbers() -> None:
    text = ANSI.sub("", on_terminal(sick(), 60))
    assert re.search(r"^  model\.vi….*blocks\.1\.26\.pw_exp\.conv\.weight$", text, re.MULTILINE)
    assert re.search(r"blocks\.2\.32\.pw_exp\.conv\.weight +34\.750 +1\.842$", text, re.MULTILINE)


def test_a_pipe_gets_whole_names_and_no_escape_codes() -> None:
    name = ".".join(["component"] * 20)
    text = piped(report([finding(tensor=name, message="long " * 100)], [tensor(name, role="conv")]))
    assert f"  {name}\n      {('long ' * 100).strip()}\n" in text
    assert text.count(name) == 2
    assert "\x1b" not in text


def test_colours_only_repeat_what_words_say(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = on_terminal(sick(), 80)
    assert "\x1b[1;31merror\x1b[0m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = on_terminal(sick(), 80)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", plain)
    assert ANSI.sub("", coloured) == ANSI.sub("", plain)


HOSTILE = [
    "[bold red]x[/bold red]",
    "a\x1b[31mred\x1b]0;title\x07",
    "a\r\nverdict: Healthy",
    "a\u202egnp\u2066",
    ":boom:",
    "x" * 10_000,
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_hostile_names_are_shown_and_never_interpreted(name: str, width: int | None) -> None:
    hostile = replace(
        report([finding(tensor=name, message=f"about {name}")], [tensor(name, role="conv")]),
        coverage=Coverage(2, 1, (Skipped(name, f"because {name}"),)),
        suppressed=(Suppressed(finding(), "allow", name, name),),
        remarks=(name,),
    )
    hostile = replace(hostile, source=replace(hostile.source, uri=name))
    text = piped(hostile) if width is None else ANSI.sub("", on_terminal(hostile, width))
    assert set(text) - {"\n"} == {char for char in text if char.isprintable()}
    assert not re.search("^verdict", text, re.MULTILINE)
    shown = name.encode("unicode_escape").decode() if len(name) < 100 else "x" * 20
    assert shown in text.replace("\n      ", "").replace("\n  ", "")


@given(st.text(st.characters(exclude_categories=()), max_size=40), st.integers(20, 130))
def test_no_name_breaks_the_page(name: str, width: int) -> None:
    text = ANSI.sub("", on_terminal(report([finding(tensor=name, message=name)], [tensor(name, role="conv")]), width))
    assert all(char.isprintable() or char == "\n" for char in text)


def test_rendered_text_fits_the_stream_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    wide = rendered(lambda console: render(sick(), console), io.StringIO())
    narrow = rendered(lambda console: render(sick(), console), Terminal())
    assert "\x1b[" not in wide
    assert "\x1b[" in narrow
    assert max(map(len, ANSI.sub("", narrow).splitlines()[:-1])) <= 40 < max(map(len, wide.splitlines()))


def test_numbers_in_words() -> None:
    assert [counted(1, "error"), counted(1556, "tensor")] == ["1 error", "1,556 tensors"]
    assert [size(n) for n in (0, 999, 1000, 10.88e9, 2e12)] == ["0 B", "999 B", "1 kB", "10.9 GB", "2 TB"]
    assert [parameters(n) for n in (1, 999_999, 22_700_000, 5_439_438_272)] == [
        "1 parameter",
        "999,999 parameters",
        "22.7 million parameters",
        "5.44 billion parameters",
    ]
