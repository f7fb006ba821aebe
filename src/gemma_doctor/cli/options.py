"""Options that several commands take, and how they and the settings become :class:`gemma_doctor.Options`."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from gemma_doctor.choices import FAIL_ON, LOADERS, TARGET_DTYPES, FailOn, Loader, TargetDtype
from gemma_doctor.cli.frame import OUTPUT, RUNNING, VERDICT, WHAT, Words, choice, option, words
from gemma_doctor.errors import UsageError
from gemma_doctor.reports.documents import say

if TYPE_CHECKING:
    from gemma_doctor.doctor import Options
    from gemma_doctor.settings import Settings

__all__ = [
    "BaselineFile",
    "ConfigFile",
    "FailOnChoice",
    "Ignore",
    "Jobs",
    "Quiet",
    "Remote",
    "ScanWanted",
    "Select",
    "SourceName",
    "SourceNames",
    "Verdict",
    "Wanted",
    "settings_for",
]

SourceName: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="A .safetensors or .gguf file, a folder, or a Hub repository owner/name."),
]
SourceNames: TypeAlias = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE...", help="A .safetensors or .gguf file, a folder, a Hub repository; or several."),
]
Select: TypeAlias = Annotated[Words, option(WHAT, "RULE", "Run these rules only (id or prefix). Repeatable.")]
Ignore: TypeAlias = Annotated[Words, option(WHAT, "RULE", "Leave these rules out; the longest prefix wins.")]
FailOnChoice: TypeAlias = Annotated[FailOn | None, choice(VERDICT, FAIL_ON, "Exit with 1 from this severity up.")]
ConfigFile: TypeAlias = Annotated[Path | None, option(VERDICT, "FILE", "Read settings from this file and no other.")]
BaselineFile: TypeAlias = Annotated[
    Path | None, option(VERDICT, "FILE", "Set aside the findings that this file lists.")
]
Quiet: TypeAlias = Annotated[bool, option(OUTPUT, None, "Print what matters most only.", "--quiet", "-q")]
Jobs: TypeAlias = Annotated[int | None, option(RUNNING, "N", "Threads to use (one per core by default).", min=1)]


def settings_for(source: str, config: Path | None) -> Settings:
    """The settings that hold for a source; what its own settings file says is shown."""
    from gemma_doctor import settings

    chosen = settings.find(source, config, Path.cwd())
    say(settings.notice(chosen))
    return chosen


@dataclass(frozen=True, slots=True)
class Remote:
    """What the command line says of a Hub repository.

    Attributes:
        revision: ``--revision``.
        token: ``--token``.
    """

    revision: Annotated[
        str | None, option(WHAT, "REV", "Branch, tag or commit of a Hub repository. Default: its main branch.")
    ] = None
    token: Annotated[
        str | None, option(WHAT, "TOKEN", "Access token for the Hub. Default: HF_TOKEN, or 'hf auth login'.")
    ] = None

    def fetched(self, source: str, *, quiet: bool, agree: Callable[[str, str], None] | None = None) -> str:
        """The source; a Hub repository is downloaded, and named with its commit from here on.

        Args:
            source: SOURCE as the user gave it.
            quiet: Whether to show no progress.
            agree: Told a repository's name and its format before that; raises where it is not wanted.
        """
        from gemma_doctor.checkpoint import is_repository, open_checkpoint

        if self.revision is None and not is_repository(source):
            return source
        self.hush(quiet=quiet)
        return open_checkpoint(source, revision=self.revision, token=self.token, download=True, agree=agree).pinned

    def check(self, *sources: str | None) -> None:
        """Refuse a token that none of the sources is opened with.

        Args:
            sources: What the command reads; None for what is not given.
        """
        from gemma_doctor.checkpoint import is_repository

        if self.token is not None and not any(is_repository(source) for source in sources if source is not None):
            raise UsageError("--token is for the Hub, and no repository of it is named. Leave --token out")

    def __post_init__(self) -> None:
        """Refuse what cannot be a token, without showing it: the HTTP client's own error would."""
        if self.token is not None and not (
            self.token.isascii() and self.token.isprintable() and self.token.split() == [self.token]
        ):
            raise UsageError("--token holds a blank, a line's end or a character that no token has: copy it again")

    @staticmethod
    def hush(*, quiet: bool) -> None:
        """No progress bars of the Hub's client where nobody wants to see them; to be said before it is loaded."""
        if quiet or not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def named(self, source: str) -> str:
        """The source as one word, for a command to follow."""
        from gemma_doctor.checkpoint.hub_names import hub_name

        name = None if self.revision is None else hub_name(source)
        return source if name is None else str(name.at(self.revision))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the command line says of what counts.

    Attributes:
        fail_on: ``--fail-on``.
        config: ``--config``.
    """

    fail_on: FailOnChoice = None
    config: ConfigFile = None

    def settings(self, source: str) -> Settings:
        """The settings that hold for a source; what its own settings file says is shown."""
        return settings_for(source, self.config)

    def least(self, chosen: Settings) -> FailOn:
        """The least severity that fails: what the command line says, or the settings, or the default."""
        return self.fail_on or chosen.fail_on or FAIL_ON[0]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says of an examination.

    Attributes:
        select: ``--select``.
        ignore: ``--ignore``.
        target_dtype: ``--target-dtype``.
        loader: ``--loader``.
        baseline: ``--baseline``.
        jobs: ``--jobs``.
    """

    select: Select = None
    ignore: Ignore = None
    target_dtype: Annotated[TargetDtype | None, choice(WHAT, TARGET_DTYPES, "What the weights are judged for.")] = None
    loader: Annotated[Loader | None, choice(WHAT, LOADERS, "What the tensors must satisfy.")] = None
    baseline: BaselineFile = None
    jobs: Jobs = None

    def options(self, chosen: Settings) -> Options:
        """The same for the doctor, and what the settings say where the command line says nothing."""
        from gemma_doctor import settings
        from gemma_doctor.inspect.suppression import Baseline, Suppressions

        known = settings.read_baseline(self.baseline) if self.baseline else Baseline()
        from gemma_doctor.doctor import Options  # after what the user may have got wrong: it takes half a second

        return Options(
            select=words(self.select) or chosen.select,
            ignore=words(self.ignore) or chosen.ignore,
            target_dtype=self.target_dtype or chosen.target_dtype or TARGET_DTYPES[0],
            loader=self.loader or chosen.loader or LOADERS[0],
            jobs=self.jobs,
            suppressions=Suppressions(chosen.per_tensor_ignores, chosen.allow, known),
        )


@dataclass(frozen=True, slots=True)
class ScanWanted(Wanted):
    """What the command line says of a scan, which may be of some tensors only.

    Attributes:
        include: ``--include``.
        exclude: ``--exclude``.
        dask: ``--dask``.
    """

    include: Annotated[Words, option(WHAT, "GLOB", "Measure only tensors of these names. Repeatable.")] = None
    exclude: Annotated[Words, option(WHAT, "GLOB", "Leave out tensors of these names. Repeatable.")] = None
    dask: Annotated[
        str | None, option(RUNNING, "ADDRESS", "Measure on the workers of a Dask scheduler, such as tcp://host:8786.")
    ] = None

    def options(self, chosen: Settings) -> Options:
        """The same for the doctor.

        Raises:
            UsageError: If both threads of this process and a Dask cluster are asked for.
        """
        if self.jobs is not None and self.dask is not None:
            raise UsageError("--jobs counts threads of this process, and --dask has workers: give one of them")
        whole = Wanted.options(self, chosen)
        return replace(whole, dask=self.dask, include=tuple(self.include or ()), exclude=tuple(self.exclude or ()))
