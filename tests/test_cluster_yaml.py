"""cluster.yaml is valid by Ray's own schema, carries no secret, and names the Ray that this checkout runs on."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from packaging.specifiers import SpecifierSet

from tests.paths import ROOT

FILE = ROOT / "cluster.yaml"
TEXT = FILE.read_text(encoding="utf-8")


def config() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


def on_gcp() -> dict[str, Any]:
    """The file with what its comments say of GCP put in the place of AWS."""
    changed = config()
    changed["provider"] = {
        "type": "gcp",
        "region": "us-west1",
        "availability_zone": "us-west1-a",
        "project_id": "project",
    }
    disk = {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": {"diskSizeGb": 200}}
    account = [
        {
            "email": "ltcore@project.iam.gserviceaccount.com",
            "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
        }
    ]
    machines = {"head": "n2-standard-8", "gpu": "g2-standard-8", "cpu": "c2-standard-16"}
    for name, node in changed["available_node_types"].items():
        node["node_config"] = {"machineType": machines[name], "disks": [disk], "serviceAccounts": account}
        if name != "head":
            node["node_config"]["scheduling"] = [{"preemptible": True}]
    return changed


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_it_passes_rays_own_validation(cloud: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    chosen = config() if cloud == "aws" else on_gcp()
    assert chosen["provider"]["type"] == cloud
    validate_config(prepare_config(copy.deepcopy(chosen)))


@pytest.mark.parametrize("machine", ["n2-standard-8", "g2-standard-8", "c2-standard-16", "us-west1-a", "preemptible"])
def test_what_changes_for_gcp_stands_in_it(machine: str) -> None:
    assert machine in TEXT


def test_a_misspelled_key_would_be_noticed() -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**config(), "setup_comands": []}))


def test_it_installs_what_this_checkout_runs_on() -> None:
    """uv sync takes the versions of pyproject.toml: Ray refuses to resume what another version of it wrote."""
    *_, command = config()["head_setup_commands"][:2]
    assert "uv sync --frozen" in command and "--no-default-groups --extra search --extra aws" in command
    constraints = tomllib.loads((FILE.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]
    assert f"ray=={ray.__version__}" in constraints["constraint-dependencies"]
    assert {"ltcore", "pyproject.toml", "README.md"} == set(config()["file_mounts"].values())


def test_the_head_is_no_spot_node_and_gpus_come_and_go() -> None:
    types = config()["available_node_types"]
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["gpu"]["min_workers"] == 0
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_every_worker_that_reads_or_writes_may() -> None:
    for name, node in config()["available_node_types"].items():
        assert node["node_config"]["IamInstanceProfile"], name


def policies() -> list[dict[str, Any]]:
    """The IAM policies in the header, which people copy from there."""
    header = "\n".join(line.removeprefix("#") for line in TEXT.splitlines() if line.startswith("#"))
    return [json.JSONDecoder().raw_decode(header, m.start())[0] for m in re.finditer(r'\{"Version"', header)]


def actions(policy: dict[str, Any]) -> set[str]:
    found = [statement["Action"] for statement in policy["Statement"] if statement["Effect"] == "Allow"]
    return {action for item in found for action in ([item] if isinstance(item, str) else item)}


def test_the_head_alone_may_start_nodes_and_pass_on_the_workers_role_alone() -> None:
    types = config()["available_node_types"]
    head = types.pop(config()["head_node_type"])["node_config"]["IamInstanceProfile"]["Name"]
    workers = {node["node_config"]["IamInstanceProfile"]["Name"] for node in types.values()}
    assert (head, workers) == ("ltcore-head", {"ltcore-s3"})
    bucket, start = policies()
    assert {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"} <= actions(bucket)
    assert not any(action.startswith(("ec2:", "iam:")) for action in actions(bucket))
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags", "iam:PassRole"} <= actions(start)
    (passed,) = [s["Resource"] for s in start["Statement"] if s["Action"] == "iam:PassRole"]
    assert passed.endswith(f":role/{workers.pop()}")


def test_ray_adds_no_rights_to_a_profile_that_is_named() -> None:
    """So the one that is named has to have them."""
    from ray.autoscaler._private.aws.config import _configure_iam_role

    head = config()["available_node_types"]["head"]["node_config"]
    assert _configure_iam_role(config())["available_node_types"]["head"]["node_config"] == head


class Group:
    """A security group that notes what is let in."""

    id = "sg-mine"

    def __init__(self, rules: list[Any]) -> None:
        self.ip_permissions = rules

    def authorize_ingress(self, IpPermissions: list[Any]) -> None:
        self.ip_permissions = IpPermissions


def test_only_a_group_of_ones_own_keeps_the_internet_from_port_22() -> None:
    """Ray's rules cannot be taken away by the file, only by a group that has rules before."""
    from ray.autoscaler._private.aws.config import _upsert_security_group_rules

    mine = [{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.7/32"}]}]
    chosen = config()
    chosen["provider"]["security_group"] = {"GroupName": "ltcore", "IpPermissions": mine}
    groups = {"head": Group(mine), "gpu": Group([])}
    _upsert_security_group_rules(chosen, groups)
    assert groups["head"].ip_permissions == mine
    assert {"CidrIp": "0.0.0.0/0"} in [
        found for rule in groups["gpu"].ip_permissions for found in rule.get("IpRanges", [])
    ]
    (line,) = [line for line in TEXT.splitlines() if "# security_group:" in line]
    assert yaml.safe_load(line.strip().removeprefix("# "))["security_group"].keys() == {"GroupName"}


def test_credentials_and_disks_are_closed() -> None:
    for name, node in config()["available_node_types"].items():
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}, name
        assert all(disk["Ebs"]["Encrypted"] for disk in node["node_config"]["BlockDeviceMappings"]), name
    assert "security_group" in TEXT and "port 22" in TEXT


@pytest.mark.parametrize(
    ("code", "found"),
    [("DryRunOperation", ""), ("UnauthorizedOperation", "UnauthorizedOperation: You are not authorized")],
)
def test_the_doctor_asks_the_cloud_whether_the_head_may_start_a_worker(
    code: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import botocore.session
    from botocore.exceptions import ClientError
    from botocore.validate import ParamValidator

    from ltcore.runtime.autoscaler import launch_refusal

    asked: list[dict[str, Any]] = []

    class Ec2:
        def run_instances(self, **wanted: Any) -> None:
            asked.append(wanted)
            raise ClientError({"Error": {"Code": code, "Message": "You are not authorized"}}, "RunInstances")

    monkeypatch.setattr("boto3.client", lambda service, **options: Ec2())
    assert launch_refusal(tmp_path / "none.yaml") is None
    on_the_head = tmp_path / "ray_bootstrap_config.yaml"
    filled = config()
    for node in filled["available_node_types"].values():
        node["node_config"] |= {"SubnetIds": ["subnet-a", "subnet-b"], "SecurityGroupIds": ["sg-a"], "KeyName": "ray"}
    on_the_head.write_text(yaml.safe_dump(filled, sort_keys=False))
    assert launch_refusal(on_the_head) == found
    machines = ["g5.2xlarge", "c6i.4xlarge"] if not found else ["g5.2xlarge"]
    assert [wanted["InstanceType"] for wanted in asked] == machines
    for wanted in asked:
        assert (wanted["DryRun"], wanted["MinCount"], wanted["MaxCount"]) == (True, 1, 1)
        assert wanted["SubnetId"] == "subnet-a" and "SubnetIds" not in wanted, "there may be no default network"
        assert wanted["IamInstanceProfile"] == {"Name": "ltcore-s3"}, "passing it on takes a right of its own"
        assert wanted["TagSpecifications"], "as does tagging"
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report = ParamValidator().validate(asked[0], shape)
    assert not report.has_errors(), report.generate_report()


def test_every_ray_start_says_its_authentication_mode() -> None:
    starts = [
        c for key in ("head_start_ray_commands", "worker_start_ray_commands") for c in config()[key] if "ray start" in c
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "export RAY_AUTH_MODE=token" in config()["setup_commands"][0], "and every shell in which drivers start"


def test_the_token_is_made_on_the_head_and_readable_by_its_owner_alone() -> None:
    *_, command = config()["head_setup_commands"]
    assert "get-auth-token --generate" in command and "chmod 600" in command
    assert "~/.ray/auth_token" in config()["cluster_synced_files"]


def test_there_is_no_secret_in_it() -> None:
    assert not re.search(r"(?i)(api_key|secret|password)\s*[:=]\s*\S", TEXT)
    assert not re.search(r"AKIA[0-9A-Z]{16}", TEXT)


def test_workers_install_the_heads_lock_whenever_they_come() -> None:
    lock, install, _ = config()["head_setup_commands"]
    assert lock.endswith("uv lock --quiet") and "--upgrade" not in lock, "a lock that fits is kept"
    assert config()["worker_setup_commands"] == [install] and "--frozen" in install
    assert "~/ltcore-src/uv.lock" in config()["cluster_synced_files"]
    assert "uv.lock" not in str(config()["file_mounts"]), "one of the laptop would replace the head's"


def test_uv_and_python_are_pinned() -> None:
    environment, *_, uv = config()["setup_commands"]
    (version,) = re.findall(r"astral\.sh/uv/(\d+\.\d+\.\d+)/install\.sh", uv)
    for other in (".ci/run", "ltcore/runtime/kuberay/rayjob.yaml"):
        assert set(re.findall(r"uv==([\d.]+)", (FILE.parent / other).read_text(encoding="utf-8"))) == {version}, other
    (python,) = re.findall(r"UV_PYTHON=\$\{UV_PYTHON:-(\d+\.\d+)\.\d+\}", environment)
    project = tomllib.loads((FILE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert SpecifierSet(project["requires-python"]).contains(python)


def commands() -> list[str]:
    """Every command that a node is given."""
    return [c for key, value in config().items() if key.endswith("_commands") for c in value]


def test_every_command_is_one_that_a_shell_can_read() -> None:
    assert len(commands()) >= 10
    for command in commands():
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), command


def test_the_shells_file_sets_a_cache_where_there_is_a_fast_disk_alone(tmp_path: Path) -> None:
    text = config()["setup_commands"][0].replace("/opt/dlami/nvme", str(tmp_path / "nvme"))
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    show = f"{text}\n. ~/.ltcore.sh; echo cache=$LTCORE_CACHE; true"
    assert subprocess.run(["bash", "-c", show], env=home, capture_output=True, text=True).stdout == "cache=\n"
    (tmp_path / "nvme").mkdir()
    said = subprocess.run(["bash", "-c", show], env=home, capture_output=True, text=True).stdout
    assert said == f"cache={tmp_path}/nvme/ltcore\n"


def test_spot_workers_watch_for_notices_and_do_not_hold_the_launcher_up() -> None:
    (watch,) = [c for c in config()["worker_start_ray_commands"] if "ltcore.runtime.spot" in c]
    began = time.monotonic()
    quiet = watch.replace("python -m ltcore.runtime.spot", "sleep 5").replace("/tmp/", "/dev/shm/ltcore-test-")
    done = subprocess.run(["bash", "-c", quiet], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 4, "its output goes elsewhere, so ssh does not wait for it"
    assert not any("ltcore.runtime.spot" in c for c in config()["head_start_ray_commands"]), "the head is on demand"


def test_traffic_between_nodes_stays_in_one_zone_and_every_type_has_room() -> None:
    assert "," not in config()["provider"]["availability_zone"]
    for name, node in config()["available_node_types"].items():
        (disk,) = node["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= 100, name


def test_the_head_computes_nothing() -> None:
    assert config()["available_node_types"]["head"]["resources"]["CPU"] == 0
