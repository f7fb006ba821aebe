"""How a user wants a checkpoint examined."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from gemma_doctor.choices import Loader, TargetDtype
from gemma_doctor.inspect.suppression import Suppressions

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """How to examine.

    Attributes:
        select: Ids or prefixes of the rules to apply; all where empty.
        ignore: Ids or prefixes of the rules to leave out.
        include: Globs of tensor names to measure; all where empty.
        exclude: Globs of tensor names to leave out.
        target_dtype: The dtype that the weights are judged for.
        loader: The loader that the tensors must satisfy.
        jobs: Threads; None for one per core.
        dask: Address of a Dask scheduler whose workers measure in place of threads.
        suppressions: Findings that the user has set aside.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    target_dtype: TargetDtype = "float16"
    loader: Loader = "transformers"
    jobs: int | None = None
    dask: str | None = None
    suppressions: Suppressions = field(default_factory=Suppressions)

    def chooses(self, tensor: str) -> bool:
        """Whether a tensor of this name is to be measured."""
        included = not self.include or any(fnmatchcase(tensor, glob) for glob in self.include)
        return included and not any(fnmatchcase(tensor, glob) for glob in self.exclude)
