"""The frame of the command line: what all commands share before anything heavy is loaded."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup

from gemma_doctor.errors import DoctorError
from gemma_doctor.reports.documents import say
from gemma_doctor.spelling import closest
from gemma_doctor.version import __version__

__all__ = [
    "COULD_NOT_TELL",
    "INTERRUPTED",
    "OUTPUT",
    "RUNNING",
    "VERDICT",
    "WHAT",
    "Sections",
    "Words",
    "app",
    "choice",
    "main",
    "option",
    "words",
]

COULD_NOT_TELL = 2
INTERRUPTED = 130
WHAT, VERDICT, OUTPUT, RUNNING = "What to examine", "What counts", "Output", "Running"  # sections of the help

Words: TypeAlias = list[str] | None

ROOT_EPILOG = """Examples:

\b
  gemma-doctor scan path/to/checkpoint
  gemma-doctor repair path/to/checkpoint --output mended
  gemma-doctor rule GD104
  gemma-doctor demo

Exit codes: 0 healthy, 1 findings at or above --fail-on, 2 could not tell.
`gemma-doctor COMMAND --help` has the options; `completion` makes Tab know them."""


class _Commands(TyperGroup):
    """The commands; an error of the user's or the system's becomes one sentence and exit code 2."""

    def make_context(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401  # click's types, or typer's copy of them
        """Read the arguments; help and version are printed here."""
        with _told():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # as above
        """Run the command that the arguments name."""
        with _told():
            return super().invoke(ctx)


@contextmanager
def _told() -> Iterator[None]:
    """Turns what ends a command before its time into a sentence and an exit code."""
    try:
        yield
    except BrokenPipeError:  # the reader of a help has gone: it has read what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
    except (DoctorError, OSError) as error:
        say(f"gemma-doctor: {error}")
        raise typer.Exit(COULD_NOT_TELL) from None
    except KeyboardInterrupt:
        say("gemma-doctor: interrupted")
        raise typer.Exit(INTERRUPTED) from None


class Sections(TyperCommand):
    """A command whose help shows its options by section, without rich (which takes 0.1 s to load)."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401  # as above
        """Read the words after the command; an error proposes what may have been meant."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            _reword(error, [name for param in self.get_params(ctx) for name in param.opts])
            raise

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  # as above
        """Write the arguments and options, section by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record: Any = param.get_help_record(ctx)
            section = getattr(param, "rich_help_panel", None) or f"{param.param_type_name.capitalize()}s"
            if record and param.param_type_name == "argument":
                record = (param.metavar, getattr(param, "help", ""))  # and not the type's name
            if record:
                sections.setdefault(section, []).append(record)
        last = [RUNNING, "Options"]  # wherever they are declared
        for title in sorted(sections, key=lambda title: last.index(title) if title in last else -1):
            with formatter.section(title):
                formatter.write_dl(sections[title])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401  # as above
        """``[OPTIONS] SOURCE...``; typer puts the name of a required argument in braces, and dots behind."""
        pieces = super().collect_usage_pieces(ctx)
        return [piece.replace("{", "").replace("}", "").replace("......", "...") for piece in pieces]


def _reword(error: Any, options: Sequence[str]) -> None:  # noqa: ANN401  # typer names no class of its errors
    """Say an error of typer's in fewer words, and name the option that was meant, if it was one."""
    if hasattr(error, "possibilities"):
        error.possibilities = None
        error.message += "".join(f". Did you mean {name}?" for name in closest(error.option_name, options))
    elif hasattr(error, "message"):
        error.message = error.message.removeprefix("Value error, ")


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. A fault of this program must not look like a finding, so it too exits with 2.

    Args:
        arguments: The words after ``gemma-doctor``; those that this process was given if None.
    """
    given = sys.argv[1:] if arguments is None else arguments
    sys.stdout, sys.stderr = _encodable(sys.stdout), _encodable(sys.stderr)
    try:
        app(prog_name="gemma-doctor", args=[_at_home(word) for word in given])
    except Exception:  # noqa: BLE001  # Python would exit with 1
        traceback.print_exc()
        say("gemma-doctor: this is a fault of gemma-doctor; please report it with the lines above")
        sys.exit(COULD_NOT_TELL)


def _at_home(word: str) -> str:
    """The word with the home folder for a ``~/`` that the shell has left: in quotes, or after ``--json=``."""
    name, equals, value = word.partition("=")
    if word.startswith("--") and equals and value.startswith("~/"):
        return f"{name}={Path(value).expanduser()}"
    return str(Path(word).expanduser()) if word.startswith("~/") else word


def _encodable(stream: Any) -> Any:  # noqa: ANN401  # a text stream, or None where the caller has closed it
    """The stream, escaping what its encoding lacks instead of failing on it."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  # for as long as the process lives
    stream.reconfigure(errors="backslashreplace")
    return stream


def option(section: str, metavar: str | None, text: str, *names: str, **more: Any) -> Any:  # noqa: ANN401
    """An option in a section of the help."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=section, show_default=False, **more)


def choice(section: str, choices: Sequence[str], text: str) -> Any:  # noqa: ANN401
    """An option with a few values, the first of which is the default (unless the settings have another)."""
    return option(section, "|".join(choices), f"{text} Default: {choices[0]}.")


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
    """Find and mend float16 trouble in model checkpoints, on disk, without torch and without a GPU."""


def words(rules: Words) -> tuple[str, ...]:
    """Rule ids of a repeatable option, each of which may hold several with commas, as in ruff."""
    return tuple(word for value in rules or () for word in value.split(",") if word)
