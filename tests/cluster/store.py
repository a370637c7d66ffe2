"""An object store that the nodes of a lab reach: moto's server on the laptop's address."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from tests.cluster.nodes import LAPTOP

BUCKET = "results"
PORT = 5123
STORE = {
    "AWS_ENDPOINT_URL": f"http://{LAPTOP}:{PORT}",
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""What gives a node its rights, as an instance profile does on a cloud."""


@contextlib.contextmanager
def object_store() -> Iterator[Any]:
    """Client of a store with one empty bucket."""
    server = ThreadedMotoServer(ip_address=LAPTOP, port=PORT, verbose=False)
    server.start()
    try:
        reset = urllib.request.Request(f"{STORE['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset, timeout=10).close()  # what an earlier store held lives on in this process
        client = boto3.client(
            "s3",
            endpoint_url=STORE["AWS_ENDPOINT_URL"],
            region_name=STORE["AWS_REGION"],
            aws_access_key_id=STORE["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=STORE["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=BUCKET)
        yield client
    finally:
        server.stop()


def read(client: Any, key: str) -> dict[str, Any]:
    return json.loads(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())


def everything(client: Any) -> dict[str, bytes]:
    """Key -> content of all that is stored."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    names = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return {name: client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names}
