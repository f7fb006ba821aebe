"""``gemma-doctor verify``."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_doctor.choices import DEVICES, MODALITIES, MODES, REFERENCES, Device, Modality, Mode, Reference
from gemma_doctor.cli.frame import OUTPUT, RUNNING, WHAT, Words, choice, option
from gemma_doctor.cli.groups import grouped
from gemma_doctor.cli.options import BaselineFile, Ignore, Quiet, Remote, Select, Verdict, Wanted
from gemma_doctor.cli.outputs import Outputs, Telling, write_all
from gemma_doctor.cli.running import after_run, applied, given, spelled, steps
from gemma_doctor.errors import UsageError
from gemma_doctor.reports.documents import STDOUT, write
from gemma_doctor.verify.measures import Measures, Request
from gemma_doctor.verify.sources import check_format

if TYPE_CHECKING:
    from gemma_doctor.records import Report

__all__ = ["EPILOG", "command"]

_SCALES = (2.0**-64, 2.0**64)
"""Times such a scale a loss stays far within float32; torch's GradScaler begins with 2**16."""

EPILOG = """Examples:

\b
  gemma-doctor verify gemma-3n-E2B-it/
  gemma-doctor verify gemma-3-4b-it/ --modality text --seq-len 2048
  gemma-doctor verify gemma-3-4b-it/ --memory-limit 16
  gemma-doctor verify mended/ --against gemma-3n-E2B-it/ --json report.json
  gemma-doctor verify google/gemma-3n-E2B-it --revision main
  gemma-doctor verify gemma-3n-E2B-it/ --no-backward --trace trace.json
  gemma-doctor repair gemma-3n-E2B-it/ --dry-run --calibration trace.json

It needs torch and transformers: pip install 'gemma-doctor[verify]'. Code of a checkpoint is never run, and
nothing is fetched but a Hub repository that SOURCE names, to the Hub's cache.

Exit codes: 0 sound, 1 findings at or above --fail-on, 2 could not tell: bad usage, a model that cannot be
loaded, or an input that could not be run or judged."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model is given."""

    modality: Annotated[Words, option(WHAT, "|".join(MODALITIES), "Run this input only. Repeatable. Default: all.")] = (
        None
    )
    text: Annotated[Path | None, option(WHAT, "FILE", "Your own text, UTF-8.")] = None
    image: Annotated[Path | None, option(WHAT, "FILE", "Your own picture.")] = None
    audio: Annotated[Path | None, option(WHAT, "FILE", "Your own sound: WAV, 16 bits, 16 kHz.")] = None
    seq_len: Annotated[int, option(WHAT, "N", "Tokens of text in a sequence. Default: 128.", min=2)] = 128
    batch: Annotated[int, option(WHAT, "N", "Sequences in a batch. Default: 1.", min=1)] = 1
    image_size: Annotated[
        int | None, option(WHAT, "PX", "Height and width of pictures. Default: the checkpoint's.", min=32)
    ] = None
    seed: Annotated[int, option(WHAT, "N", "For whatever is random. Default: 0.")] = 0

    def request(self) -> Request:
        """The same for the harness."""
        return Request(
            length=self.seq_len,
            size=self.batch,
            seed=self.seed,
            text=self.text,
            image=self.image,
            audio=self.audio,
            side=self.image_size,
        )

    def modalities(self) -> tuple[Modality, ...]:
        """The kinds of input that were asked for.

        Raises:
            UsageError: If one is unknown.
        """
        unknown = set(self.modality or ()) - set(MODALITIES)
        if unknown:
            raise UsageError(f"--modality {min(unknown)} is unknown; it is one of {', '.join(MODALITIES)}")
        return tuple(known for known in MODALITIES if known in (self.modality or ()))


@dataclass(frozen=True, slots=True)
class Manner:
    """How the model is run."""

    device: Annotated[Device, choice(RUNNING, DEVICES, "Where to run.")] = DEVICES[0]
    mode: Annotated[Mode, choice(RUNNING, MODES, "float16 weights, or float32 weights under autocast.")] = MODES[0]
    no_backward: Annotated[bool, option(RUNNING, None, "Run forward only.", "--no-backward")] = False
    loss_scale: Annotated[str, option(RUNNING, "auto|N", "The only loss scale to try. Default: auto, a search.")] = (
        "auto"
    )
    gradient_checkpointing: Annotated[
        bool,
        option(RUNNING, None, "Compute layers again in the backward pass (non-reentrant).", "--gradient-checkpointing"),
    ] = False
    freeze: Annotated[Words, option(RUNNING, "GLOB", "Do not train parameters of these names. Repeatable.")] = None
    reference: Annotated[Reference, choice(RUNNING, REFERENCES, "What float16 is compared with.")] = REFERENCES[0]
    against: Annotated[
        str | None, option(RUNNING, "SOURCE", "Compare its float32 output with this checkpoint's, too.")
    ] = None
    memory_limit: Annotated[
        float | None, option(RUNNING, "GIB", "Memory that tensors may take on a GPU; 16 imitates a T4.", min=0.1)
    ] = None
    guard: Annotated[
        bool, option(RUNNING, None, "Run with the float16-safe kernels instead of rewriting weights.", "--guard")
    ] = False

    def scale(self) -> float | None:
        """The loss scale that was asked for; None for a search.

        Raises:
            UsageError: If it is no positive number.
        """
        if self.loss_scale == "auto":
            return None
        try:
            scale = float(self.loss_scale)
        except ValueError:
            scale = 0.0
        if not 0 < scale < float("inf"):
            raise UsageError(f"--loss-scale {self.loss_scale} is neither auto nor a positive number")
        if not _SCALES[0] <= scale <= _SCALES[1]:
            raise UsageError(f"--loss-scale {self.loss_scale}: take one from 2^-64 to 2^64; the loss is float32")
        return scale

    def measures(self, inputs: Inputs) -> Measures:
        """Everything for the harness.

        Raises:
            UsageError: If a choice is none, or contradicts another.
        """
        if self.no_backward and self.freeze:
            raise UsageError("--freeze says what is not trained, and --no-backward trains nothing: leave one out")
        backward = {"--loss-scale": self.scale() is not None, "--gradient-checkpointing": self.gradient_checkpointing}
        idle = [name for name, is_given in backward.items() if is_given and self.no_backward]
        if idle:
            raise UsageError(f"{idle[0]} is about the backward pass, which --no-backward leaves out: leave one out")
        return Measures(
            device=self.device,
            mode=self.mode,
            backward=not self.no_backward,
            modalities=inputs.modalities(),
            reference=self.reference,
            loss_scale=self.scale(),
            memory_limit=self.memory_limit,
            guard=self.guard,
            checkpointing=self.gradient_checkpointing,
            frozen=tuple(self.freeze or ()),
            request=inputs.request(),
        )


@grouped
def command(  # noqa: PLR0913, PLR0917  # typer reads the options from the signature
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder that transformers loads, or a Hub repository owner/name.")
    ],
    inputs: Inputs,
    manner: Manner,
    verdict: Verdict,
    outputs: Outputs,
    remote: Remote,
    *,
    select: Select = None,
    ignore: Ignore = None,
    baseline: BaselineFile = None,
    trace: Annotated[
        str | None, option(OUTPUT, "TRACE.json", "Write what the reference measured, for repair --calibration.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run the model in float16; name the first operation that fails.

    Forward and backward: every operation is watched, and compared with a
    float32 run of the same inputs.
    """
    outputs.check(trace=trace)
    if trace is not None and manner.reference == "none":
        raise UsageError("--trace writes what the reference measured: leave out --reference none")
    measures = manner.measures(inputs)
    remote.check(source, manner.against)
    chosen = verdict.settings(source)
    source = remote.fetched(source, quiet=quiet, agree=check_format)
    against = manner.against
    if against is not None:
        against = replace(remote, revision=None).fetched(against, quiet=quiet, agree=check_format)
    options = Wanted(select=select, ignore=ignore, baseline=baseline).options(chosen)
    from gemma_doctor import doctor
    from gemma_doctor.reports import terminal
    from gemma_doctor.reports.trace_file import to_trace
    from gemma_doctor.verify.registry import RULES

    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # large gradients find room
    with steps("loading torch and transformers", quiet=quiet) as step:
        report = doctor.verify(source, measures, options, against=against, step=step)
    least = verdict.least(chosen)
    command_line = spelled("verify", source, *given(inputs), *given(manner))
    telling = Telling(
        source, applied(options, RULES), least, _next(report, source, inputs, manner, trace), command=command_line
    )
    brief, whole = partial(terminal.render_brief, report), partial(terminal.render, report, commands=telling.commands)
    write_all(outputs, report, telling, brief if quiet else whole, [trace])
    if trace is not None:
        write(trace, to_trace(report))
    raise typer.Exit(doctor.exit_code(report, least))


def _next(
    report: Report, source: str, inputs: Inputs, manner: Manner, trace: str | None
) -> tuple[tuple[str, str], ...]:
    """What to do next, and what each command is for.

    Args:
        report: The report.
        source: SOURCE as the user gave it.
        inputs: What the model was given: it is given the same again.
        manner: How it was run; a trace is of the float32 reference, whose backward pass it does not need.
        trace: ``--trace``.
    """
    if not report.findings:
        return ()
    there = trace if trace not in {None, STDOUT} else None
    forward = given(Manner(device=manner.device, memory_limit=manner.memory_limit))
    same = given(replace(manner, against=None))
    return tuple(after_run(report, source, [*given(inputs), *forward], [*given(inputs), *same], there))
