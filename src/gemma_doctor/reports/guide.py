"""What a renderer must be told, for a report does not say it: the rules that were applied, and where to point at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gemma_doctor.choices import Severity

__all__ = ["Anchor", "RulePage"]


@dataclass(frozen=True, slots=True)
class RulePage:
    """A rule that was applied.

    Attributes:
        id: Such as ``"GD101"``.
        name: Such as ``"nonfinite-weight"``.
        severity: The gravest that it reports.
        page: Its page in Markdown.
    """

    id: str
    name: str
    severity: Severity
    page: str

    @property
    def summary(self) -> str:
        """What the page's title says after the names."""
        return self.page.partition("\n")[0].partition(": ")[2]


@dataclass(frozen=True, slots=True)
class Anchor:
    """The text file of a repository that stands for a checkpoint: tensor files are binary and have no lines.

    Attributes:
        path: Relative to the repository's root with forward slashes; absolute where it lies outside.
        lines: The line of each tensor that the file names, from 1.
    """

    path: str
    lines: Mapping[str, int] = field(default_factory=dict)

    def line(self, tensor: str | None) -> int:
        """The line to show for a tensor; the first for anything that the file does not name."""
        return self.lines.get(tensor or "", 1)
