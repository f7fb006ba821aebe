"""How quick and how large the HTML report is: ``python benchmarks/reports.py``.

Gemma 3n E2B's 1,556 tensors by name, shape and role, with random figures and planted faults, and 20,000 tensors; no
checkpoint is needed. It needs playwright and a chromium (``apt-get install chromium``).
"""

from __future__ import annotations

import math
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import inputs
from playwright.sync_api import Browser, sync_playwright
from table import Row, markdown

from gemma_doctor import catalog
from gemma_doctor.architectures import identify
from gemma_doctor.records import Coverage, FileInfo, Finding, Repair, Report, Source
from gemma_doctor.reports.page import to_html
from gemma_doctor.tensors import MeasuredTensor, Role, TensorInfo, TensorStats
from gemma_doctor.version import __version__

FILE = "model.safetensors"
MANY = 20_000
PLANTED = {"pw_proj.conv.weight": ("GD104", 98.0), "down_conv.weight": ("GD104", 37.0), "k_norm.weight": ("GD201", 0.0)}
ROUNDS = 5
DRAWN = """window.drawn = new Promise((done) => addEventListener("DOMContentLoaded", () =>
  requestAnimationFrame(() => setTimeout(() => done(performance.now())))));"""
FILTERED = """() => {
  const field = document.getElementById("by-name"), started = performance.now();
  field.value = "7.";
  field.dispatchEvent(new Event("input"));
  document.getElementById("table").getBoundingClientRect();
  return performance.now() - started;
}"""


def main() -> None:
    """Print the table."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no chromium is installed: apt-get install chromium")
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=chromium)
        rows = [
            *figures("E2B", e2b(), Path(folder), browser),
            *figures("20,000 tensors", many(), Path(folder), browser),
        ]
        browser.close()
    print(markdown(rows))


def figures(what: str, report: Report, folder: Path, browser: Browser) -> Iterator[Row]:
    """Rendering, size, and what a reader waits for, as medians."""
    pages = {rule.id: catalog.page(rule) for rule in catalog.RULES}
    file = folder / "report.html"
    rendering: list[float] = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        file.write_text(to_html(report, pages=pages), encoding="utf-8")
        rendering.append(time.perf_counter() - started)
    opened = [_opened(file, browser) for _ in range(ROUNDS)]
    ready, filtered = (statistics.median(each) for each in zip(*opened, strict=True))
    seconds, size = statistics.median(rendering), file.stat().st_size
    beside = f"{len(report.tensors):,} tensors, {len(report.findings):,} findings"
    bound = 2e6 if report.source.architecture == "gemma3n" else 20e6
    yield Row(f"HTML report of {what}: render", f"{seconds:.2f} s", beside, None, "< 5 s", seconds < 5)
    yield Row(f"HTML report of {what}: size", f"{size / 1e6:.2f} MB", "", None, f"< {bound / 1e6:.0f} MB", size < bound)
    yield Row(f"HTML report of {what}: interactive", f"{ready:.2f} s", "chromium", None, "< 1 s", ready < 1)
    yield Row(f"HTML report of {what}: filter", f"{filtered:.3f} s", "chromium", None, "< 0.3 s", filtered < 0.3)


def _opened(file: Path, browser: Browser) -> tuple[float, float]:
    """Seconds until the page obeys the reader and its first frame, with the chart, is drawn; seconds of a filter."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.add_init_script(DRAWN)
    page.goto(file.as_uri())
    drawn = page.evaluate("() => window.drawn")
    filtered = page.evaluate(FILTERED)
    page.close()
    return drawn / 1000, filtered / 1000


def e2b() -> Report:
    """Gemma 3n E2B with faults."""
    model = identify(inputs.E2B_CONFIG)
    known = [(name, one.shape, one.role) for name, one in model.expected.items() if one.need != "tied-head"]
    return _report("gemma3n", known)


def many() -> Report:
    """So many tensors that a page could not list them at once."""
    return _report("generic", [(f"layers.{i // 10}.block.{i % 10}.weight", (64, 64), "linear") for i in range(MANY)])


def _report(family: str, known: list[tuple[str, tuple[int, ...], Role]]) -> Report:
    rng = random.Random(0)  # noqa: S311  # figures, no secrets
    tensors = [_tensor(name, shape, role, rng) for name, shape, role in known]
    findings = [finding for tensor in tensors for finding in _found(tensor)]
    return Report(
        version=__version__,
        source=Source("gemma-3n-E2B-it", None, "safetensors", family, (FileInfo(FILE, 1 << 33, None, len(tensors)),)),
        target_dtype="float16",
        loader="transformers",
        coverage=Coverage(len(tensors), len(tensors)),
        findings=tuple(findings),
        tensors=tuple(tensors),
        seconds=1.5,
    )


def _tensor(name: str, shape: tuple[int, ...], role: Role, rng: random.Random) -> MeasuredTensor:
    """A tensor with the figures of normal weights of some width, or of a planted fault."""
    count = math.prod(shape)
    width = 10 ** rng.uniform(-2, 0)
    largest = width * math.sqrt(2 * math.log(count + 2))
    stats = TensorStats(
        count=count,
        fp16_subnormal=int(count * 6e-5 / width / 2),
        minimum=-largest * rng.uniform(0.9, 1),
        maximum=largest,
        squares=Fraction(width) ** 2 * count,
        row_l1_max=width * count / shape[0] if len(shape) > 1 else None,
        row_squares_max=width * width * count / shape[0] if len(shape) > 1 else None,
    )
    planted = next((size for end, (_, size) in PLANTED.items() if name.endswith(end)), None)
    if planted is not None:
        stats = replace(stats, minimum=-planted, maximum=planted / 2, zeros=0 if planted else count)
    return MeasuredTensor(TensorInfo(name, "BF16", shape, FILE, 0, 2 * count), stats, role, 65504.0)


def _found(tensor: MeasuredTensor) -> Iterator[Finding]:
    """The finding of a planted fault: each says something of its own, as real ones do."""
    for end, (rule, size) in PLANTED.items():
        if tensor.info.name.endswith(end):
            message = f"Planted: the largest magnitude is {size:g}, of {tensor.stats.count:,} elements."
            evidence = {"absmax": size, "threshold": 16.0}
            mended = Repair("rescale-conv", "eps")
            yield Finding(rule, "planted", "warning", message, tensor.info.name, FILE, evidence, mended)


if __name__ == "__main__":
    main()
