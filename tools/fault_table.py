"""Write docs/faults.md: what gemma-doctor and other means say of faults planted in tiny models.

Usage: python tools/fault_table.py [--check]

It needs tests/requirements-proof.txt, and takes some minutes on two cores. ``--check`` writes nothing and fails where a
case is not found, or a sound one is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
import torchvision_operators  # noqa: E402, F401  # before whatever imports torchvision
import transformers  # noqa: E402
from faults import CONTROLS, FAULTS, Case  # noqa: E402
from torch import nn  # noqa: E402
from transformers.debug_utils import DebugUnderflowOverflow  # noqa: E402

from gemma_doctor import doctor  # noqa: E402
from gemma_doctor.checkpoint import open_checkpoint  # noqa: E402
from gemma_doctor.records import Report  # noqa: E402
from gemma_doctor.verify.inputs import batch  # noqa: E402
from gemma_doctor.verify.loading import read_config  # noqa: E402
from gemma_doctor.verify.measures import Measures, Request  # noqa: E402

HEAD = """\
<!-- Made by tools/fault_table.py: run it again instead of editing. -->

# What is found, by whom

Faults planted in tiny models that are true to their architecture (`tests/faults.py`), and controls that are large but
sound. Each is run in float16 on a CPU, in one go with {versions}. *Debug* is
`transformers.debug_utils.DebugUnderflowOverflow`, *hooks* a forward hook on every module that looks for inf and NaN in
what it returns: both see the forward pass only, and know of no reference.

| case | true first operation | gemma-doctor verify | Debug | hooks |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What is said of one case."""

    case: Case
    ours: str
    right: bool
    debug: str
    hooks: str

    def line(self) -> str:
        """The row of the table."""
        true = " / ".join(part for part in self.case.where[1:] if part) if self.case.where else "none: sound"
        cells = (
            self.case.name,
            _code(true),
            f"{'yes' if self.right else '**no**'}: {self.ours}",
            self.debug,
            self.hooks,
        )
        return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run every case and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 where a case is judged wrongly"
    )
    check = parser.parse_args().check
    rows = []
    for case in (*FAULTS, *CONTROLS):
        rows.append(_row(case))
        print(rows[-1].line(), flush=True)
    if not check:
        versions = f"torch {torch.__version__} and transformers {transformers.__version__}"
        text = HEAD.format(versions=versions) + "".join(f"{row.line()}\n" for row in rows)
        (ROOT / "docs" / "faults.md").write_text(text, encoding="utf-8")
    sys.exit(not all(row.right for row in rows))


def _row(case: Case) -> Row:
    with tempfile.TemporaryDirectory() as scratch:
        folder = case.build(Path(scratch) / "checkpoint")
        request = Request(length=16, side=None if case.config["model_type"] == "gemma3" else 64)
        measures = Measures(device="cpu", modalities=(case.modality,), backward=case.backward, request=request)
        report = doctor.verify(folder, measures)
        subject = read_config(open_checkpoint(folder))
        inputs = batch(subject, case.modality, request)
        with subject.loaded(torch.float16, torch.device("cpu")) as model, torch.no_grad():
            arguments = inputs.on(torch.device("cpu"), torch.float16)
            hooks = _hooks(model, arguments)
            debug = _debug(model, arguments)
    return Row(case, *_ours(case, report), debug, hooks)


def _ours(case: Case, report: Report) -> tuple[str, bool]:
    """What the report names first, and whether that is true."""
    failures = [run.first_failure for run in report.verification.runs] if report.verification else []
    rules = ", ".join(dict.fromkeys(finding.rule for finding in report.findings)) or "no finding"
    if not failures or failures[0] is None:
        return rules, case.where is None and not report.findings
    seen = failures[0].activation
    return f"{rules}, {seen.phase}, {_code(seen.op)}", (seen.phase, seen.module, seen.op) == case.where


def _debug(model: nn.Module, arguments: dict[str, Any]) -> str:
    """The module that transformers' own tool blames."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        DebugUnderflowOverflow(model, max_frames_to_save=1)
        try:
            model(**arguments)
        except ValueError:
            names = re.findall(r"^\s*(\S+) \w+$", said.getvalue(), flags=re.MULTILINE)
            return _code(names[-1]) if names else "inf or NaN somewhere"
    return "nothing"


def _hooks(model: nn.Module, arguments: dict[str, Any]) -> str:
    """The first module whose output a hook finds to be inf or NaN."""
    found: list[str] = []

    def hook(name: str, output: object) -> None:
        floats = (tensor for tensor in _tensors(output) if tensor.is_floating_point())
        found.extend(name for tensor in floats if not bool(tensor.isfinite().all()))

    handles = [
        module.register_forward_hook(lambda _module, _args, output, name=name: hook(name, output))
        for name, module in model.named_modules()
    ]
    model(**arguments)
    for handle in handles:
        handle.remove()
    return _code(found[0]) if found else "nothing"


def _tensors(output: object) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, (list, tuple)):
        for item in output:
            yield from _tensors(item)


def _code(text: str) -> str:
    return f"`{text.replace('model.vision_tower.timm_model.', '…')}`"


if __name__ == "__main__":
    main()
