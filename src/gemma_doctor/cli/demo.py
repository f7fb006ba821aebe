"""``gemma-doctor demo``."""
# ruff: noqa: PLC0415  # what is heavy is imported when it is needed

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from gemma_doctor.cli.frame import OUTPUT, option
from gemma_doctor.cli.running import MENDED, examine, progress, spelled
from gemma_doctor.errors import UsageError
from gemma_doctor.reports.documents import draw, say

__all__ = ["EPILOG", "command"]

EPILOG = """Examples:

\b
  gemma-doctor demo
  gemma-doctor demo --output gemma-demo"""

_KEEP = (spelled("demo", "--output", "gemma-demo"), "the same, and keep both checkpoints")
_SICK = "sick"
_VERIFY_NEEDS = ("torch", "transformers", "timm", "torchvision")


def command(
    output: Annotated[
        Path | None, option(OUTPUT, "DIR", f"Keep both checkpoints: DIR/{_SICK} and DIR/{MENDED}. New or empty.")
    ] = None,
) -> None:
    """Build a small sick Gemma 3n, scan it, mend it, scan it again.

    Where torch and transformers work, the mended copy is also run in float16.
    """
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} is not an empty folder; name a new one with --output")
    with nullcontext(output) if output else tempfile.TemporaryDirectory(prefix="gemma-doctor-") as folder:
        sick, mended = Path(folder, _SICK), Path(folder, MENDED)
        _demonstrate(sick, mended)
    kept = (
        (spelled("scan", str(sick), "--json", "report.json"), "every number"),
        (spelled("repair", str(sick), "--dry-run", "--save-plan", "plan.json"), "every edit"),
        (spelled("rule", "rescale-conv"), "how the convolutions were mended"),
    )
    _close(kept if output else (_KEEP,))


def _demonstrate(sick: Path, mended: Path) -> None:
    """The whole way; each step says by which command a user would take it."""
    from gemma_doctor import demo, doctor
    from gemma_doctor.reports import plan as plans
    from gemma_doctor.reports import terminal

    say(f"building a small sick Gemma 3n in {sick}")
    demo.build(sick)
    _step(f"$ {spelled('scan', str(sick))}")
    report = examine(str(sick), doctor.Options(), quiet=False)
    draw(lambda console: terminal.render(report, console))
    _step(f"$ {spelled('repair', str(sick), '--output', str(mended))}")
    plan = doctor.plan(report)
    tensors = {tensor.info.name: tensor.info for tensor in report.tensors}
    draw(lambda console: plans.render_plan(plan, tensors, console))
    with progress("repairing", quiet=False) as bar:
        applied = doctor.repair(plan, mended, progress=bar)
    draw(lambda console: plans.render_applied(applied, console))
    _step(f"$ {spelled('scan', str(mended))}")
    after = examine(str(mended), doctor.Options(), quiet=False)
    draw(lambda console: terminal.render(after, console))
    if _can_verify():
        _verify(mended, sick)


def _can_verify() -> bool:
    """Whether what verify needs is there and works; of what is there and broken, a word."""
    if not all(find_spec(name) for name in _VERIFY_NEEDS):
        return False
    from gemma_doctor.verify.needs import why_broken

    try:
        for name in _VERIFY_NEEDS:
            import_module(name)
    except (ImportError, RuntimeError) as error:  # torchvision for another build of torch raises the latter
        say(f"verify is left out: {why_broken(error)}")
        return False
    return True


def _verify(mended: Path, sick: Path) -> None:
    """A short run of the mended copy: its picture is small, so that a processor takes no more than a minute or two."""
    from gemma_doctor import doctor
    from gemma_doctor.reports import terminal
    from gemma_doctor.verify.measures import Measures, Request

    run = ("--against", str(sick), "--no-backward", "--seq-len", "32", "--image-size", "64")
    _step(f"$ {spelled('verify', str(mended), *run)}")
    measures = Measures(backward=False, request=Request(length=32, side=64))
    verified = doctor.verify(mended, measures, against=sick)
    draw(lambda console: terminal.render(verified, console))


def _step(text: str) -> None:
    from gemma_doctor.reports.entries import write_step
    from gemma_doctor.reports.sheet import Sheet

    draw(lambda console: write_step(text, Sheet.on(console)))


def _close(commands: tuple[tuple[str, str], ...]) -> None:
    from gemma_doctor.reports.entries import write_commands
    from gemma_doctor.reports.sheet import Sheet

    draw(lambda console: write_commands(commands, Sheet.on(console)))
