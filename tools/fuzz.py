"""Feed mutated documents to every reader of them, and stop where one breaks its law.

What is accepted must keep the reader's law, and what is refused must end in the reader's own error: see
tests/hostile_documents.py. Anything else, a document that takes too long and one that takes too much memory are faults:
the document is printed, and kept in --work. Each run begins with the corpora of tests/data; what it finds worth keeping
lies in --work, and tools/fuzz_corpora.py makes the new corpora of it. ``--guided`` searches by the coverage of the
readers, in a process for each, one after the other; it needs atheris (``pip install atheris``) and a Python that it is
built for.

Usage: PYTHONPATH=tests python tools/fuzz.py {header,index,gguf,config,settings,baseline,plan,report,trace,all}
       --work FOLDER [--seconds S] [--seed N] [--guided]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import random
import re
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostile_documents import Reader, Target

NAMES = ("header", "index", "gguf", "config", "settings", "baseline", "plan", "report", "trace")
POOL, LONGEST = 512, 20_000
SLOWEST = 10.0  # seconds of one document; the largest model within the limits takes half of one
MOST_MEMORY = 4 << 30  # bytes of address space: what would exhaust memory ends in a MemoryError here
WATCHED = ("checkpoint", "architectures", "settings", "nodes", "repair", "reports")
_RUNS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


class Watched:
    """A reader; whatever it raises, and every document that takes too long, names the document.

    Attributes:
        slowest: Processor seconds of the slowest document so far.
    """

    def __init__(self, reader: Reader) -> None:
        """Watches a reader, which says whether it accepts a document."""
        self._reader = reader
        self.slowest = 0.0

    def __call__(self, text: bytes) -> bool:
        """Whether the document is accepted.

        Raises:
            RuntimeError: If the reader fails in another way than its own, or takes too long.
        """
        started = time.process_time()
        try:
            accepted = self._reader(text)
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__} on {text!r}") from error
        seconds = time.process_time() - started
        if seconds > SLOWEST:
            raise RuntimeError(f"{seconds:.1f} s for {text!r}")
        self.slowest = max(self.slowest, seconds)
        return accepted


def load(name: str, fuzzer: Any = None) -> tuple[Target, list[bytes]]:  # noqa: ANN401  # atheris, or nothing
    """A reader, its code instrumented for the fuzzer, and the documents to begin with."""
    watched = [f"gemma_doctor.{room}" for room in WATCHED]
    with fuzzer.instrument_imports(include=[*watched, "tomllib"]) if fuzzer else nullcontext():
        documents = importlib.import_module("hostile_documents")
    target: Target = documents.targets()[name]
    return target, [*target.seeds, *documents.corpus(name)]


def mutate(name: str, arguments: argparse.Namespace) -> None:
    """Check mutants for some time; those that are accepted are kept and mutated again."""
    target, begin = load(name)
    rng, read = random.Random(arguments.seed), Watched(target.reader)  # noqa: S311  # repeatable, not secret
    pool, inputs, accepted = list(begin), 0, 0
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        inputs += 1
        text = target.mutated(rng.choice(pool), rng)
        if not read(text):
            continue
        accepted += 1
        if len(text) < LONGEST:
            pool.append(text)
        if len(pool) > POOL:
            del pool[rng.randrange(len(begin), len(pool))]
    print(f"{name}: {inputs:,} documents, {accepted:,} accepted, no fault, the slowest {read.slowest:.2f} s")
    keep(arguments.work / name, pool[len(begin) :])


def keep(folder: Path, texts: list[bytes]) -> Path:
    """Write documents into a folder, each under its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    for text in texts:
        (folder / hashlib.sha256(text).hexdigest()[:16]).write_bytes(text)
    return folder


def guide(name: str, arguments: argparse.Namespace) -> None:
    """Let libFuzzer search by the coverage of one reader; it ends the process."""
    atheris: Any = importlib.import_module("atheris")  # for this mode only, and not on every platform
    target, begin = load(name, atheris)
    read = Watched(target.reader)

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, most))
        return target.mutated(data, random.Random(seed))[:most]  # noqa: S311  # repeatable, not secret

    def one_input(data: bytes) -> None:
        read(data)

    folder = keep(arguments.work / name, begin)
    ends = [f"-max_total_time={arguments.seconds}", f"-timeout={2 * SLOWEST:.0f}"]
    limits = [*ends, f"-rss_limit_mb={MOST_MEMORY >> 20}", f"-max_len={LONGEST}"]
    marks = [f"-seed={arguments.seed}", f"-artifact_prefix={arguments.work / name}-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *marks, str(folder)], one_input, custom_mutator=mutator)
    atheris.Fuzz()


def one_after_the_other(arguments: argparse.Namespace) -> int:
    """Run every reader in a process of its own, and print a row for each; how many had a fault."""
    faults, share = 0, arguments.seconds // len(NAMES)
    print("| reader | documents | minutes | in the corpus | faults |\n| --- | ---: | ---: | ---: | ---: |", flush=True)
    for name in NAMES:
        options = ["--guided"] if arguments.guided else []
        words = [name, "--work", str(arguments.work), "--seconds", str(share), "--seed", str(arguments.seed), *options]
        log, started = arguments.work / f"{name}.log", time.monotonic()
        with log.open("w", encoding="utf-8") as stream:
            code = subprocess.run(
                [sys.executable, __file__, *words], stdout=stream, stderr=subprocess.STDOUT, check=False
            ).returncode
        runs = _RUNS.search(log.read_text(encoding="utf-8", errors="replace"))
        minutes, kept = (time.monotonic() - started) / 60, len(list((arguments.work / name).iterdir()))
        faults += code != 0
        print(f"| {name} | {int(runs[1]) if runs else 0:,} | {minutes:.1f} | {kept} | {int(code != 0)} |", flush=True)
    return faults


def main() -> None:
    """Run as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=(*NAMES, "all"))
    parser.add_argument("--work", type=Path, required=True, help="where logs, faults and what is found lie")
    parser.add_argument("--seconds", type=int, default=3600, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guided", action="store_true", help="search by coverage, with atheris")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.target == "all":
        sys.exit(one_after_the_other(arguments) > 0)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    (guide if arguments.guided else mutate)(arguments.target, arguments)


if __name__ == "__main__":
    main()
