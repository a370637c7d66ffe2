"""What the cluster may grow to: read from the configuration that ``ray up`` leaves on the head node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltcore.config.bounded_yaml import load_yaml
from ltcore.errors import ConfigError
from ltcore.limits import MAX_RECIPE_BYTES, load_json
from ltcore.storage import TooLargeError, read_bytes

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
_MAX_AMOUNT = 10**9
"""Of nodes, CPUs or GPUs: more is damage."""
_REMEDY = "Run `ray up` again, or remove the file and give --max-gpus."


@dataclass(frozen=True)
class Limits:
    """Most that all nodes together may have, the head included."""

    cpus: float
    gpus: float
    cpus_per_gpu: float
    """Of the GPU node with the fewest CPUs beside each GPU; 0 where there is none."""


def read_limits(file: Path = BOOTSTRAP) -> Limits | None:
    """Returns the autoscaler's maximum.

    It is None without such a file, or where node types do not say what they have.
    """
    path = file.expanduser()
    if not path.is_file():
        return None
    with _understood(path):
        return limits_of(_config(path))


def _config(path: Path) -> Any:
    data = read_bytes(str(path), MAX_RECIPE_BYTES)
    try:
        return load_json(data)  # as Ray writes it: libyaml refuses JSON's escapes of characters beyond 16 bits
    except ValueError:
        return load_yaml(data.decode())


@contextlib.contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Turns what a damaged file leads to into a ConfigError that names it."""
    try:
        yield
    except TooLargeError as error:
        raise ConfigError(f"{error} {_REMEDY}") from None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{path} is not a cluster configuration ({said}). {_REMEDY}") from error


def launch_refusal(file: Path = BOOTSTRAP) -> str | None:
    """Asks AWS by a dry run why this machine, the head, may not start a worker.

    Returns '' where it may, and None where nothing is known: no such file, another cloud, or no client for AWS.
    """
    path = file.expanduser()
    if not path.is_file():
        return None
    with _understood(path):
        config = _config(path)
        types = [node for name, node in config["available_node_types"].items() if name != config["head_node_type"]]
        requests = [_request(node["node_config"]) for node in types]
        if config["provider"].get("type") != "aws" or not types:
            return None
        region = config["provider"]["region"]
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return None
    patience = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 1})
    try:
        client = boto3.client("ec2", region_name=region, config=patience)
        for request in requests:
            try:
                client.run_instances(DryRun=True, **request)
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code != "DryRunOperation":
                    return f"{code}: {error.response['Error'].get('Message', '')[:200]}"
    except BotoCoreError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _request(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the request that Ray sends to EC2.

    It is the node's configuration as `ray up` has filled it in, in its first subnet, with tags.
    """
    asked = {key: value for key, value in wanted.items() if key != "SubnetIds"}
    if subnets := wanted.get("SubnetIds"):
        asked["SubnetId"] = subnets[0]
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "ray-node-type", "Value": "worker"}]}]
    return {**asked, "MinCount": 1, "MaxCount": 1, "TagSpecifications": tags}


def limits_of(config: Mapping[str, Any]) -> Limits | None:
    """Returns the largest cluster of a configuration.

    GPU nodes come first, up to the maximum of each type and of all together.
    """
    types = config["available_node_types"]
    head = config["head_node_type"]
    left = _amount(config, "max_workers", 0)
    workers = [node for name, node in types.items() if name != head or node.get("max_workers")]
    if not all(node.get("resources") for node in workers):
        return None
    first = types[head].get("resources") or {}
    cpus, gpus = _amount(first, "CPU", 0), _amount(first, "GPU", 0)
    beside = [_amount(n["resources"], "CPU", 0) / own for n in types.values() if (own := _gpus(n))]
    for node in sorted(workers, key=_gpus, reverse=True):
        count = min(left, _amount(node, "max_workers", left))
        left -= count
        cpus += count * _amount(node["resources"], "CPU", 0)
        gpus += count * _gpus(node)
    return Limits(cpus, gpus, min(beside, default=0.0))


def _gpus(node: Mapping[str, Any]) -> float:
    return _amount(node.get("resources") or {}, "GPU", 0)


def _amount(section: Mapping[str, Any], key: str, default: float) -> float:
    """Returns how many there are of something. Raises ValueError for what is no number of nodes, CPUs or GPUs."""
    amount = section.get(key, default)
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount <= _MAX_AMOUNT:
        raise ValueError(f"{key}={amount!r:.40} is no number from 0 to {_MAX_AMOUNT:,}")
    return amount
