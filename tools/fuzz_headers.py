"""Feed the readers of headers and of the index mutated files, and compare with the parsers that loaders use.

A header must be accepted or refused as the official safetensors parser does, with the same tensors; an index that is
accepted must hold what the json module reads, and one that is refused must end in IndexFileError; a GGUF file that
is accepted must hold the tensors that the gguf package reads, and one that is refused must end in HeaderError. Whatever
else happens stops the run and prints the input. ``--guided`` searches by coverage, and needs atheris (and its Python).

Usage: PYTHONPATH=tests python tools/fuzz_headers.py {header,index,gguf}
       [--inputs N] [--seconds S] [--seed N] [--guided]
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import checkpoint_bytes
import gguf_bytes

from gemma_doctor.checkpoint.index import read_index
from gemma_doctor.checkpoint.stores import Folder
from gemma_doctor.errors import IndexFileError

INDEX_SEEDS = (
    b'{"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "x"}}',
    b'{"weight_map":{},"metadata":{"total_size":8.0,"x":[1e400,NaN,{"y":[]}]}}',
)
POOL = 512
LONGEST = 4096

Mutator: TypeAlias = "Callable[[bytes, random.Random], bytes]"


def check_header(header: bytes) -> bool:
    """Whether a file with this header is accepted; both parsers must say the same.

    Raises:
        AssertionError: If they disagree.
    """
    raw = checkpoint_bytes.with_data(header)
    theirs, ours = checkpoint_bytes.official(raw), checkpoint_bytes.ours(raw)
    if theirs != ours:
        raise AssertionError(f"official {theirs!r}, ours {ours!r}: {header!r}")
    return theirs is not None


def check_index(text: bytes) -> bool:
    """Whether this index is accepted.

    Raises:
        AssertionError: If it is, and the json module reads something else.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(text)
        file.flush()
        try:
            index = read_index(Folder(Path(file.name).parent), Path(file.name).name)
        except IndexFileError:
            return False
    if json.loads(text)["weight_map"] != index.weight_map:
        raise AssertionError(f"another weight_map: {text!r}")
    return True


def check_gguf(raw: bytes) -> bool:
    """Whether this GGUF file is accepted.

    Raises:
        AssertionError: If it is, and the gguf package reads something else.
    """
    ours = gguf_bytes.ours(raw)
    if ours is None:
        return False
    theirs = gguf_bytes.official(raw)
    if theirs != ours:
        raise AssertionError(f"gguf {theirs!r}, ours {ours!r}: {raw!r}")
    return True


def mutate(
    check: Callable[[bytes], bool], seeds: tuple[bytes, ...], mutated: Mutator, arguments: argparse.Namespace
) -> None:
    """Check mutants; those that are accepted are mutated again."""
    rng = random.Random(arguments.seed)  # noqa: S311 - repeatable, not secret
    pool, accepted, inputs = list(seeds), 0, 0
    end = time.monotonic() + arguments.seconds
    while inputs < arguments.inputs and time.monotonic() < end:
        inputs += 1
        text = mutated(rng.choice(pool), rng)
        if not check(text):
            continue
        accepted += 1
        if len(text) < LONGEST:
            pool.append(text)
        if len(pool) > POOL:
            del pool[rng.randrange(len(seeds), len(pool))]
    print(f"{inputs:,} inputs, {accepted:,} accepted, no disagreement")


def guide(
    check: Callable[[bytes], bool], seeds: tuple[bytes, ...], mutated: Mutator, arguments: argparse.Namespace
) -> None:
    """Let libFuzzer search by the coverage of the readers; it ends the process."""
    atheris = importlib.import_module("atheris")  # for this mode only, and not on every platform

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        if seed % 2:
            return bytes(atheris.Mutate(data, most))
        return mutated(data, random.Random(seed))[:most]  # noqa: S311 - repeatable, not secret

    def one_input(data: bytes) -> None:
        check(data)

    atheris.instrument_all()
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            Path(corpus, str(number)).write_bytes(seed)
        limits = [f"-runs={arguments.inputs}", f"-max_total_time={arguments.seconds}", f"-seed={arguments.seed}"]
        atheris.Setup([sys.argv[0], *limits, f"-max_len={LONGEST}", corpus], one_input, custom_mutator=mutator)
        atheris.Fuzz()


def main() -> None:
    """Run as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("header", "index", "gguf"))
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--guided", action="store_true")
    arguments = parser.parse_args()
    target = {
        "header": (check_header, checkpoint_bytes.SEEDS, checkpoint_bytes.mutated),
        "index": (check_index, INDEX_SEEDS, checkpoint_bytes.mutated),
        "gguf": (check_gguf, gguf_bytes.SEEDS, gguf_bytes.mutated),
    }
    (guide if arguments.guided else mutate)(*target[arguments.target], arguments)


if __name__ == "__main__":
    main()
