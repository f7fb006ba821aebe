"""Kinds of harm to what goes over a network: scans and repairs of a Hub repository, scans on a Dask cluster."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import clusters
import hub_server
from distributed import Client
from harm import INTERRUPTED, KILLED, Harm, Outcome, Scene, end, judge, prepare
from harms import signalled
from hub_server import COMMIT, Hub

REPOSITORY = "owner/name"
_LIES = ("whole", "longer", "shorter", "early", "range", "total")
_SLOW = 0.02  # seconds that a worker takes for each tensor, so that there is time to harm it

Upset: TypeAlias = "Callable[[Hub, random.Random], None]"


def of_hub(scene: Scene, server: Hub) -> Scene:
    """The same checkpoint as a repository; the Hub's cache is a home of its own."""
    home = scene.folder / "home"
    return replace(scene, uri=REPOSITORY, revision=COMMIT, environment=server.environment(home))


def _calm(scene: Scene, server: Hub) -> None:
    """No home yet, and a Hub that behaves."""
    shutil.rmtree(scene.folder / "home", ignore_errors=True)
    server.cuts, server.lie, server.pause, server.linked_tag = 0, "", 0.0, ""
    server.tags, server.busy, server.api_busy = [], [], []


def _kept(scene: Scene) -> tuple[str, ...]:
    """What a scan has put into the Hub's cache, which is nothing."""
    kept = [path.name for path in (scene.folder / "home").rglob("*") if path.is_file()]
    return (f"left in the home: {kept}",) if kept else ()


def upset(server: Hub, mischief: Upset, told: tuple[str, ...] = ()) -> Harm:
    """Harm to a scan by a Hub that misbehaves.

    Args:
        server: The Hub.
        mischief: What it is told to do.
        told: Words of the errors that are true then; empty where the scan must succeed.
    """

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        prepare(scene)
        _calm(scene, server)
        mischief(server, rng)
        ended = end(scene.start("scan"))
        wrong = [] if ended.code != 2 or any(word in ended.err for word in told) else [f"not told: {ended.err}"]
        return Outcome(True, (*judge(scene, ended, (2,) if told else (scene.code,)), *wrong, *_kept(scene)))  # noqa: FBT003

    return harm


def storm(server: Hub, queue: str) -> Harm:
    """Harm by refusals in a row: it lasts, or gives up and says so."""

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        prepare(scene)
        _calm(scene, server)
        setattr(server, queue, [(rng.choice((429, 429, 500, 503)), {"Retry-After": "0"})] * rng.randint(1, 9))
        ended = end(scene.start("scan"))
        struck = ended.code == 2
        wrong = [] if not struck or "times in a row" in ended.err else [f"the cause is not told: {ended.err}"]
        return Outcome(True, (*judge(scene, ended, (2,) if struck else (scene.code,)), *wrong, *_kept(scene)))  # noqa: FBT003

    return harm


def interrupted(server: Hub, command: str, number: signal.Signals) -> Harm:
    """Harm by a signal while a slow Hub sends."""
    harm = signalled(command, number)

    def slowly(scene: Scene, rng: random.Random) -> Outcome:
        _calm(scene, server)
        server.pause = 0.05
        outcome = harm(scene, rng)
        return Outcome(outcome.struck, (*outcome.lost, *(_kept(scene) if command == "scan" else ())))

    return slowly


@contextmanager
def served_apart(folder: Path, last: int) -> Iterator[dict[str, str]]:
    """A Hub in a process of its own, which a request kills: the environment that leads to it."""
    words = [sys.executable, hub_server.__file__, str(folder), str(last)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield {"HF_ENDPOINT": process.stdout.readline().strip()}
        finally:
            process.kill()


def server_killed(scene: Scene, rng: random.Random) -> Outcome:
    """Harm to a scan by a Hub that dies, at its first requests or while tensors come."""
    prepare(scene)
    with served_apart(scene.source, rng.randint(1, 16)) as environment:
        ended = end(replace(scene, environment={**scene.environment, **environment}).start("scan"))
    struck = ended.code == 2
    wrong = [] if not struck or "Check " in ended.err else [f"the cause is not told: {ended.err}"]
    return Outcome(struck, (*judge(scene, ended, (2,) if struck else (scene.code,)), *wrong))


def hub_harms(server: Hub) -> Mapping[str, Harm]:
    """Every kind of harm to the scan and the repair of a repository.

    Args:
        server: The Hub that holds the scene's checkpoint.
    """

    def cut(hub: Hub, rng: random.Random) -> None:
        hub.cuts = rng.randint(1, 6)

    def lie(hub: Hub, rng: random.Random) -> None:
        hub.lie = rng.choice(_LIES)

    def change(hub: Hub, rng: random.Random) -> None:
        hub.tags = ["another"] * rng.randint(2, 5)  # the first is the index's, which is read once

    lies = ("in place of 206", "Content-Length is", "the body ended", "Content-Range is", "the file changed while")
    return {
        "Hub: scan, connections cut mid-range": upset(server, cut),
        "Hub: scan, lying lengths and ranges": upset(server, lie, lies),
        "Hub: scan, the ETag changes": upset(server, change, ("the file changed while it was read",)),
        "Hub: scan, a storm of 429 and 5xx from the storage": storm(server, "busy"),
        "Hub: scan, a storm of 429 and 5xx from the API": storm(server, "api_busy"),
        "Hub: scan, the server killed": server_killed,
        "Hub: scan killed": interrupted(server, "scan", signal.SIGKILL),
        "Hub: scan interrupted (Ctrl-C)": interrupted(server, "scan", signal.SIGINT),
        "Hub: repair killed": interrupted(server, "repair", signal.SIGKILL),
        "Hub: repair interrupted (Ctrl-C)": interrupted(server, "repair", signal.SIGINT),
    }


def _await_work(client: Client, process: subprocess.Popen[str], rng: random.Random) -> list[str]:
    """Some moment after the workers were given work; the addresses of those that have some, if it is not done."""
    while process.poll() is None and not clusters.holders(client):
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 1))
    return clusters.holders(client)


def worker_killed(scene: Scene, rng: random.Random) -> Outcome:
    """Harm to a scan by a worker that dies with work in its hands; another one does it."""
    prepare(scene)
    with clusters.cluster_of(2) as cluster:
        address = cluster.scheduler_address
        clusters.in_workers(address, clusters.slow_down, _SLOW)
        with Client(address, set_as_default=False) as client:
            pids = client.run(clusters.own_pid)
            process = scene.start("scan", "--dask", address)
            busy = [worker for worker in _await_work(client, process, rng) if worker in pids]
            if busy:
                clusters.kill(pids[rng.choice(busy)])
            ended = end(process)
    return Outcome(bool(busy), judge(scene, ended, (scene.code,)))


def scheduler_killed(scene: Scene, rng: random.Random) -> Outcome:
    """Harm to a scan by a scheduler that dies."""
    prepare(scene)
    with clusters.apart(2) as (address, scheduler):
        clusters.in_workers(address, clusters.slow_down, _SLOW)
        with Client(address, set_as_default=False) as client:
            process = scene.start("scan", "--dask", address)
            _await_work(client, process, rng)
        scheduler.kill()
        ended = end(process)
    struck = ended.code == 2
    wrong = [] if not struck or "was lost" in ended.err else [f"the cause is not told: {ended.err}"]
    return Outcome(struck, (*judge(scene, ended, (2,) if struck else (scene.code,)), *wrong))


def dask_signalled(number: signal.Signals) -> Harm:
    """Harm to a scan on a cluster by a signal."""

    def harm(scene: Scene, rng: random.Random) -> Outcome:
        prepare(scene)
        with clusters.cluster_of(2) as cluster:
            address = cluster.scheduler_address
            clusters.in_workers(address, clusters.slow_down, _SLOW)
            process = scene.start("scan", "--dask", address)
            with Client(address, set_as_default=False) as client:
                _await_work(client, process, rng)
            process.send_signal(number)
            ended = end(process)
        struck = ended.code in {KILLED, INTERRUPTED}
        return Outcome(struck, judge(scene, ended, (ended.code,) if struck else (scene.code,)))

    return harm


DASK_HARMS: Mapping[str, Harm] = {
    "Dask: scan, a worker killed": worker_killed,
    "Dask: scan, the scheduler killed": scheduler_killed,
    "Dask: scan killed": dask_signalled(signal.SIGKILL),
    "Dask: scan interrupted (Ctrl-C)": dask_signalled(signal.SIGINT),
}
"""Every kind of harm to a scan on a cluster."""
