"""A scan of a Hub repository against a download and a scan of the files: ``python benchmarks/hub.py [--rounds N]``.

The Hub is the tests' own (``tests/hub_server.py``), in another process of this machine; each of its answers comes 50 ms
late. Bandwidth is the loopback's, which no network has: the advantage of reading less is larger elsewhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from table import race

HERE = Path(__file__).parent
REPO = "owner/name"
LATENCY = 0.05  # seconds
SHARDS, TENSORS, SIDE = 4, 60, 2048  # float16 matrices: 503 MB
VISION = 12  # of the tensors
INCLUDE = "*vision_tower*"


def main() -> None:
    """Build the checkpoint, run everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each entrant")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = checkpoint(Path(temporary) / "checkpoint")
        with far(folder) as environment:
            os.environ.update(environment, HF_HOME=f"{temporary}/home")  # before the client is loaded
            print(*rows(Path(temporary) / "cache", options.rounds), sep="\n")


def checkpoint(folder: Path) -> Path:
    """Shards of float16 matrices with an index, a fifth of them an image encoder's."""
    folder.mkdir()
    noise = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float16)
    places: dict[str, str] = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        numbers = range(shard * TENSORS // SHARDS, (shard + 1) * TENSORS // SHARDS)
        tensors = {f"model.{'vision_tower' if n < VISION else 'language_model'}.{n}.weight": noise for n in numbers}
        save_file(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "other"}))
    return folder


@contextmanager
def far(folder: Path) -> Iterator[dict[str, str]]:
    """A Hub in a process of its own that has the folder's files; what makes the client use it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(folder, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send(None)
        process.join()


def serve(folder: Path, pipe: Connection) -> None:
    """The process of the Hub: says how to reach it, and waits for the end."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from hub_server import hub, repository  # noqa: PLC0415  # of the tests

    with hub(name=repository(folder)) as server:
        server.latency = LATENCY
        pipe.send(server.environment(folder.parent / "home"))
        pipe.recv()


def rows(cache: Path, rounds: int) -> Iterator[str]:
    """Rows of seconds, every entrant in turn."""
    entrants = {
        "scan over the Hub": partial(streamed, ()),
        "download, then scan": partial(downloaded, cache, ()),
        f"scan over the Hub, `--include '{INCLUDE}'`": partial(streamed, (INCLUDE,)),
        f"download, then scan with `--include '{INCLUDE}'`": partial(downloaded, cache, (INCLUDE,)),
    }
    seconds = race(entrants, rounds)
    yield "| 503 MB in 4 shards, 50 ms before each answer | s | of the download's |"
    yield "| --- | ---: | ---: |"
    bases = list(seconds.values())[1::2]
    for number, (name, taken) in enumerate(seconds.items()):
        yield f"| {name} | {taken:.2f} | {taken / bases[number // 2]:.2f} |"


def streamed(include: tuple[str, ...]) -> None:
    """Scan the repository where it is."""
    from gemma_doctor import Options, scan  # noqa: PLC0415  # after the environment is set

    scan(REPO, Options(include=include))


def downloaded(cache: Path, include: tuple[str, ...]) -> None:
    """Download all of the repository, then scan what has come."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # as above

    from gemma_doctor import Options, scan  # noqa: PLC0415  # as above

    shutil.rmtree(cache, ignore_errors=True)
    scan(snapshot_download(REPO, cache_dir=cache), Options(include=include))


if __name__ == "__main__":
    main()
