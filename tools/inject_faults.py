"""Inject faults into scan, repair and verify at random moments, and count what is lost.

tests/harm.py says what each kind of harm does, and what counts as lost. Prints a table in Markdown; exits with 1 if
anything was lost. A kind that this machine cannot do (no C compiler, no mounts in a namespace) is named and left out.

Usage: PYTHONPATH=tests python tools/inject_faults.py [--attempts N] [--seed N] [--only WORD]
       [--verify] [--gguf] [--far]
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import ggufs
from checkpoints import healthy, tiny_gemma3_config, write
from gguf.constants import GGUFValueType
from harm import Harm, Outcome, Scene, set_up
from harms import HARMS, VERIFY_HARMS
from harms_far import DASK_HARMS, hub_harms, of_hub
from harms_gguf import GGUF_HARMS, NAME
from hub_server import hub, repository

from gemma_doctor import demo


def attempts(scene: Scene, harm: Harm, count: int, rng: random.Random) -> list[Outcome]:
    """The outcomes of one kind of harm; whatever is lost is printed at once."""
    outcomes = []
    for _ in range(count):
        outcome = harm(scene, rng)
        outcomes.append(outcome)
        for what in outcome.lost:
            print(f"LOST: {what}", file=sys.stderr, flush=True)
    return outcomes


def rows(scene: Scene, harms: Mapping[str, Harm], count: int, rng: random.Random, only: str) -> int:
    """Print a row for each kind of harm; how many attempts lost something."""
    lost = 0
    for name, harm in harms.items():
        if only not in name:
            continue
        if scene.shim is None and "fail" in name:
            print(f"no C compiler: left out: {name}", file=sys.stderr)
            continue
        outcomes = attempts(scene, harm, count, rng)
        losses = sum(bool(outcome.lost) for outcome in outcomes)
        struck = sum(outcome.struck for outcome in outcomes)
        print(f"| {name} | {len(outcomes)} | {struck} | {len(outcomes) - losses} | {losses} |", flush=True)
        lost += losses
    return lost


def main() -> None:
    """Run as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="kinds whose name holds this word")
    parser.add_argument("--verify", action="store_true", help="harm verify too, a Gemma 3 text model")
    parser.add_argument("--gguf", action="store_true", help="harm the repair of a GGUF file, too")
    parser.add_argument("--far", action="store_true", help="harm scans of a Hub repository and on a Dask cluster, too")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # begun with &, it and its children would ignore Ctrl-C
    rng, started = random.Random(arguments.seed), time.monotonic()  # noqa: S311  # repeatable, not secret
    print("| harm | attempts | struck before the end | survived | lost |\n| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="gemma-doctor-harm-") as folder:
        demo.build(Path(folder, "sick"))
        Path(folder, "scene").mkdir()
        scene = set_up(Path(folder, "scene"), Path(folder, "sick"))
        lost = rows(scene, HARMS, arguments.attempts, rng, arguments.only)
        if arguments.gguf:
            Path(folder, "gguf").mkdir()
            ggufs.gemma3n(Path(folder, "gguf", NAME), (GGUFValueType.FLOAT32, 10.0))
            Path(folder, "third").mkdir()
            packed = set_up(Path(folder, "third"), Path(folder, "gguf"))
            lost += rows(packed, GGUF_HARMS, arguments.attempts, rng, arguments.only)
        if arguments.far:
            lost += rows(scene, DASK_HARMS, arguments.attempts, rng, arguments.only)
            with hub(name=repository(scene.source)) as server:
                far = of_hub(scene, server)
                lost += rows(far, hub_harms(server), arguments.attempts, rng, arguments.only)
        if arguments.verify:
            config = tiny_gemma3_config()
            write(Path(folder, "text"), healthy(config), {**config, "dtype": "bfloat16"})
            Path(folder, "other").mkdir()
            text = set_up(Path(folder, "other"), Path(folder, "text"), verify=True)
            lost += rows(text, VERIFY_HARMS, arguments.attempts, rng, arguments.only)
    print(f"\n{time.monotonic() - started:.0f} s, seed {arguments.seed}")
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
