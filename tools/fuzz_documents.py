"""Feed mutated configs, settings, baselines, plans, reports and traces to their readers.

What is accepted must keep the reader's law, and what is refused must end in the reader's own error: see
tests/hostile_documents.py. Whatever else happens, and a document that takes too long, stops the run and prints it.
Documents that were accepted are kept in --corpus, and the next run begins with them too.

Usage: PYTHONPATH=tests python tools/fuzz_documents.py {config,settings,baseline,plan,report,trace,all}
       [--seconds S] [--seed N] [--corpus FOLDER] [--guided]
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import sys
import time
from pathlib import Path

import checkpoint_bytes
from fuzz_headers import guide
from hostile_documents import Reader, Target, targets

POOL, LONGEST = 512, 20_000
SLOWEST = 10.0  # seconds of one document; the largest model within the limits takes half of one
MOST_MEMORY = 4 << 30  # bytes of address space: what would exhaust memory ends in a MemoryError here


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


def mutate(name: str, target: Target, seconds: float, seed: int, corpus: Path | None) -> None:
    """Check mutants for some time; those that are accepted are kept and mutated again."""
    rng, read = random.Random(seed), Watched(target.reader)  # noqa: S311  # repeatable, not secret
    kept = [path.read_bytes() for path in sorted(corpus.glob(f"{name}-*"))] if corpus else []
    pool, inputs, accepted = [*target.seeds, *kept], 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        inputs += 1
        text = checkpoint_bytes.mutated(rng.choice(pool), rng)
        if not read(text):
            continue
        accepted += 1
        if len(text) < LONGEST:
            pool.append(text)
        if len(pool) > POOL:
            del pool[rng.randrange(len(target.seeds), len(pool))]
    print(
        f"{name}: {inputs:,} documents, {accepted:,} accepted, no fault, the slowest {read.slowest:.2f} s", flush=True
    )
    if corpus:
        keep(corpus, name, pool[len(target.seeds) :])


def keep(corpus: Path, name: str, texts: list[bytes]) -> None:
    """Write documents to the corpus, each under its hash."""
    corpus.mkdir(parents=True, exist_ok=True)
    for text in texts:
        (corpus / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}").write_bytes(text)


def main() -> None:
    """Run as the command line asks."""
    known = targets()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=(*known, "all"))
    parser.add_argument("--seconds", type=int, default=3600, help="in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--guided", action="store_true", help="search by coverage, with atheris; one target only")
    parser.add_argument("--inputs", type=int, default=-1, help="with --guided")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    if arguments.guided:
        target = known[arguments.target]
        guide(Watched(target.reader), target.seeds, checkpoint_bytes.mutated, arguments)
        sys.exit()
    names = known if arguments.target == "all" else (arguments.target,)
    for name in names:
        mutate(name, known[name], arguments.seconds / len(names), arguments.seed, arguments.corpus)


if __name__ == "__main__":
    main()
