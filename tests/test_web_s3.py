"""Scanning a bucket of an S3 server on this machine, through s3fs."""

from __future__ import annotations

import json
from pathlib import Path

import boto3
import numpy as np
from checkpoints import write
from command import call, run
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

KEYS = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}


def test_a_folder_of_a_bucket_is_the_folder(tmp_path: Path) -> None:
    weight = np.ones((100, 256), np.float32)
    weight[3, 4] = np.inf
    tensors = {"model.a.weight": weight, "model.b.weight": np.ones((100, 256), np.float32)}
    folder = write(tmp_path / "checkpoint", tensors, {"model_type": "other"}, shards=2)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **KEYS)
        client.create_bucket(Bucket="models")
        for path in folder.iterdir():
            client.put_object(Bucket="models", Key=f"sick/{path.name}", Body=path.read_bytes())
        env = {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
        env |= {name.upper(): key for name, key in KEYS.items()}
        far = run("scan", "s3://models/sick", "--json", "-", env=env)
        missing = run("scan", "s3://models/none", env=env)
    finally:
        server.stop()
    assert far.code == 1, far.err
    found, local = json.loads(far.out), json.loads(call("scan", folder, "--json", "-").out)
    for key in ("tensors", "findings", "coverage", "complete"):
        assert found[key] == local[key]
    assert (missing.code, missing.out) == (2, "")
    assert "nothing is there" in missing.err
