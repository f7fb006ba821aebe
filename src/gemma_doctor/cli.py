"""The command line: parse, ask the doctor, render, exit.

Whatever is heavy (rich, numba, the rules) is imported inside the command that needs it, so that ``--help`` and usage
errors come at once. Exit codes: 0 healthy, 1 findings at or above ``--fail-on``, 2 could not tell, 130 interrupted.
Standard output carries the report, or nothing but the document that goes to ``-``; all else goes to standard error.
"""
# ruff: noqa: PLC0415  # imports inside the commands, as said above

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup

from gemma_doctor import __version__
from gemma_doctor.errors import DoctorError, UsageError
from gemma_doctor.records import FAIL_ON, LOADERS, TARGET_DTYPES, FailOn, Loader, TargetDtype
from gemma_doctor.reports.documents import STDOUT, check_target, draw, say, write

if TYPE_CHECKING:
    from gemma_doctor.doctor import Options, Progress
    from gemma_doctor.records import Report

__all__ = ["app", "main"]

COULD_NOT_TELL = 2
INTERRUPTED = 130
WHAT, VERDICT, OUTPUT, RUNNING = "What to examine", "What counts", "Output", "Running"  # sections of the help

Words: TypeAlias = list[str] | None

EXIT_CODES = """Exit codes: 0 healthy, 1 findings at or above --fail-on, 2 could not tell. A scan that left a selected
tensor unmeasured, or measured none, exits with 2 whatever it found."""

ROOT_EPILOG = f"""Examples:

\b
  gemma-doctor scan path/to/checkpoint
  gemma-doctor rule GD104
  gemma-doctor demo

{EXIT_CODES}"""

SCAN_EPILOG = f"""Examples:

\b
  gemma-doctor scan gemma-3n-E2B-it/
  gemma-doctor scan model.safetensors --select GD1 --fail-on warning
  gemma-doctor scan gemma-3n-E2B-it/ --include '*vision_tower*' --json report.json
  gemma-doctor scan model.safetensors --write-baseline known.json
  gemma-doctor scan model.safetensors --baseline known.json --json - | jq .summary

Settings: the command line wins over --config FILE, that over gemma-doctor.toml beside the checkpoint, that over
[tool.gemma-doctor] of the nearest pyproject.toml. Only the first of these files is read.

{EXIT_CODES}"""

RULE_EPILOG = """Examples:

\b
  gemma-doctor rule
  gemma-doctor rule GD104
  gemma-doctor rule fp16-conv-overflow-risk"""

DEMO_EPILOG = """Examples:

\b
  gemma-doctor demo
  gemma-doctor demo --output sick-gemma"""


class _Commands(TyperGroup):
    """The commands; an error of the user's or the system's becomes one sentence and exit code 2."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # click's types: typer uses click, or a copy of it
        """Run the command that the arguments name."""
        try:
            return super().invoke(ctx)
        except (DoctorError, OSError) as error:
            say(f"gemma-doctor: {error}")
            raise typer.Exit(COULD_NOT_TELL) from None
        except KeyboardInterrupt:
            say("gemma-doctor: interrupted")
            raise typer.Exit(INTERRUPTED) from None


class _Sections(TyperCommand):
    """A command whose help shows its options by section, without rich (which takes 0.1 s to load)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  # as above
        """Write the arguments and options, section by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            section = getattr(param, "rich_help_panel", None) or f"{param.param_type_name.capitalize()}s"
            if record:
                sections.setdefault(section, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Run the command line. A fault of this program must not look like a finding, so it too exits with 2."""
    sys.stdout, sys.stderr = _encodable(sys.stdout), _encodable(sys.stderr)
    try:
        app(prog_name="gemma-doctor")
    except Exception:  # noqa: BLE001  # Python would exit with 1
        import traceback

        traceback.print_exc()
        say("gemma-doctor: this is a fault of gemma-doctor; please report it with the lines above")
        sys.exit(COULD_NOT_TELL)


def _encodable(stream: Any) -> Any:  # noqa: ANN401  # a text stream, or None where the caller has closed it
    """The stream, escaping what its encoding lacks instead of failing on it."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  # for as long as the process lives
    stream.reconfigure(errors="backslashreplace")
    return stream


def _option(section: str, metavar: str | None, text: str, *names: str, **more: Any) -> Any:  # noqa: ANN401
    """An option in a section of the help."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=section, show_default=False, **more)


def _choice(section: str, choices: Sequence[str], text: str) -> Any:  # noqa: ANN401
    """An option with a few values, the first of which is the default (unless the settings have another)."""
    return _option(section, "|".join(choices), f"{text} Default: {choices[0]}.")


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # typer's callback
    if wanted:
        typer.echo(f"gemma-doctor {__version__}")
        raise typer.Exit


@app.callback(epilog=ROOT_EPILOG)
def _root(
    version: Annotated[  # noqa: FBT002  # its callback acts on it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find float16 trouble in model checkpoints, on disk, without torch and without a GPU."""


@app.command(cls=_Sections, epilog=SCAN_EPILOG)
def scan(  # noqa: PLR0913  # typer reads the options from the signature
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A .safetensors file or a checkpoint folder.")],
    *,
    select: Annotated[Words, _option(WHAT, "RULE", "Run these rules only (id or prefix). Repeatable.")] = None,
    ignore: Annotated[Words, _option(WHAT, "RULE", "Leave these rules out; the longest prefix wins.")] = None,
    include: Annotated[Words, _option(WHAT, "GLOB", "Measure only tensors of these names. Repeatable.")] = None,
    exclude: Annotated[Words, _option(WHAT, "GLOB", "Leave out tensors of these names. Repeatable.")] = None,
    target_dtype: Annotated[
        TargetDtype | None, _choice(WHAT, TARGET_DTYPES, "What the weights are judged for.")
    ] = None,
    loader: Annotated[Loader | None, _choice(WHAT, LOADERS, "What the tensors must satisfy.")] = None,
    fail_on: Annotated[FailOn | None, _choice(VERDICT, FAIL_ON, "Exit with 1 from this severity up.")] = None,
    config: Annotated[Path | None, _option(VERDICT, "FILE", "Read settings from this file and no other.")] = None,
    baseline: Annotated[Path | None, _option(VERDICT, "FILE", "Set aside the findings that this file lists.")] = None,
    write_baseline: Annotated[
        Path | None,
        _option(VERDICT, "FILE", "Write the present findings as a baseline. The exit code stays as it is."),
    ] = None,
    json: Annotated[str | None, _option(OUTPUT, "PATH", "Write the report as JSON; - is standard output.")] = None,
    quiet: Annotated[bool, _option(OUTPUT, None, "Print the verdict and the findings only.", "--quiet", "-q")] = False,
    jobs: Annotated[int | None, _option(RUNNING, "N", "Threads to use (one per core by default).", min=1)] = None,
) -> None:
    """Say what is wrong with the weights on disk.

    Every selected tensor is measured to its last element: no torch, no GPU, constant memory.
    """
    from gemma_doctor import settings
    from gemma_doctor.inspect.suppression import Baseline, Suppressions

    check_target(json)
    check_target(write_baseline)
    chosen = settings.find(source, config, Path.cwd())
    say(settings.notice(chosen))
    known = settings.read_baseline(baseline) if baseline else Baseline()
    from gemma_doctor import doctor

    options = doctor.Options(
        select=_words(select) or chosen.select,
        ignore=_words(ignore) or chosen.ignore,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        target_dtype=target_dtype or chosen.target_dtype or TARGET_DTYPES[0],
        loader=loader or chosen.loader or LOADERS[0],
        jobs=jobs,
        suppressions=Suppressions(chosen.per_tensor_ignores, chosen.allow, known),
    )
    report = _examine(source, options, quiet=quiet)
    if write_baseline:
        write(write_baseline, settings.baseline_text(report))
    _show(report, source, json, quiet=quiet)
    raise typer.Exit(doctor.exit_code(report, fail_on or chosen.fail_on or FAIL_ON[0]))


@app.command(cls=_Sections, epilog=RULE_EPILOG)
def rule(
    name: Annotated[str | None, typer.Argument(metavar="RULE", help="Id or name of a rule; none lists all.")] = None,
) -> None:
    """Explain one rule, or list all."""
    from gemma_doctor.inspect.registry import RULES, find_rule, page
    from gemma_doctor.reports import manual

    if name is None:
        rows = [(item.id, item.name, item.severity, _summary(page(item))) for item in RULES]
        draw(lambda console: manual.render_list(rows, console))
    else:
        text = page(find_rule(name))
        draw(lambda console: manual.render_page(text, console))


def _summary(page: str) -> str:
    """What follows the rule's id and name in the title of its page."""
    return page.partition("\n")[0].partition(": ")[2]


@app.command(cls=_Sections, epilog=DEMO_EPILOG)
def demo(
    output: Annotated[Path | None, _option(OUTPUT, "DIR", "Build it in this new or empty folder, and keep it.")] = None,
) -> None:
    """Build a small sick Gemma 3n and scan it."""
    import tempfile

    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not an empty folder; name a new one with --output")
    with nullcontext(output) if output else tempfile.TemporaryDirectory(prefix="gemma-doctor-") as folder:
        _demonstrate(Path(folder), _numbers(str(output)) if output else _KEEP)


_KEEP = ("gemma-doctor demo --output sick-gemma", "the same, and keep the checkpoint")


def _demonstrate(folder: Path, more: tuple[str, str]) -> None:
    from gemma_doctor import demo as sick
    from gemma_doctor.doctor import Options
    from gemma_doctor.reports import terminal

    say(f"building a small sick Gemma 3n in {folder}")
    sick.build(folder)
    report = _examine(str(folder), Options(), quiet=False)
    draw(lambda console: terminal.render(report, console, more))


def _numbers(source: str) -> tuple[str, str]:
    """The command that writes every number of a scan, and what it is for."""
    return f"gemma-doctor scan {shlex.quote(source)} --json report.json", "every number"


def _words(rules: Words) -> tuple[str, ...]:
    """Rule ids of a repeatable option, each of which may hold several with commas, as in ruff."""
    return tuple(word for value in rules or () for word in value.split(",") if word)


def _examine(source: str, options: Options, *, quiet: bool) -> Report:
    from gemma_doctor import doctor

    with _progress(quiet=quiet) as progress:
        return doctor.scan(source, options, progress)


def _progress(*, quiet: bool) -> AbstractContextManager[Progress | None]:
    """A progress bar where somebody can see it."""
    if quiet or not sys.stderr.isatty():
        return nullcontext()
    from gemma_doctor.reports.progress import bar
    from gemma_doctor.reports.sheet import console_for

    return bar(console_for(sys.stderr))


def _show(report: Report, source: str, json: str | None, *, quiet: bool) -> None:
    """Write the report to where it was asked for, and to standard output unless a document goes there."""
    from gemma_doctor.reports import machine, terminal

    if json is not None:
        write(json, machine.to_json(report))
    if json == STDOUT:
        return
    if quiet:
        draw(lambda console: terminal.render_brief(report, console))
    else:
        draw(lambda console: terminal.render(report, console, None if json else _numbers(source)))
