"""A real server that speaks S3, on loopback, and a machine's own mirror of what is in it."""

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from lmim.trial.store import Store

URI = "s3://bucket/results"
KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server(port: int = 0, again: bool = False) -> Iterator[dict[str, str]]:
    """The server, with an empty bucket; yields what a process needs in its environment to find it.

    `again`: with what the one before it in this process was left with.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    server.start()
    host, port = server.get_host_and_port()
    found = KEYS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    if not again:
        urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST"))
    client = boto3.client(
        "s3",
        endpoint_url=found["AWS_ENDPOINT_URL"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id="tests",
        aws_secret_access_key="tests",
    )
    client.create_bucket(Bucket="bucket")
    try:
        yield found
    finally:
        server.stop()


def machine(cache: Path, uri: str = URI) -> Store:
    """The store as another machine sees it, whose cache is its own."""
    before = os.environ["LMIM_CACHE"]
    os.environ["LMIM_CACHE"] = str(cache)
    try:
        return Store.open(uri)
    finally:
        os.environ["LMIM_CACHE"] = before
