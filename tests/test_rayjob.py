"""rayjob.yaml is valid by KubeRay's schema and by Ray's own reading of it, carries no secret, and runs what this checkout has."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ltcore.cli import parsers as cli
from ltcore.config.load import load_run
from tests.paths import ROOT

FILE = importlib.resources.files("ltcore") / "runtime" / "kuberay" / "rayjob.yaml"
TEXT = FILE.read_text(encoding="utf-8")
SCHEMA = json.loads((Path(__file__).parent / "golden" / "rayjob_schema.json").read_text(encoding="utf-8"))


def manifest() -> dict[str, Any]:
    """A fresh copy in which what the file shares by anchors is not shared, so that a test changes one place alone."""
    return json.loads(json.dumps(yaml.safe_load(TEXT)))


def at(value: Any, path: str) -> Any:
    for step in path.split("."):
        value = value[int(step) if step.isdigit() else step]
    return value


def errors(value: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(value)]


CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec"
POD = f"{HEAD}.template.spec"
GPU = f"{CLUSTER}.workerGroupSpecs.0"


def groups() -> list[dict[str, Any]]:
    """The group of the head, then those of the workers."""
    return [at(manifest(), HEAD), *at(manifest(), f"{CLUSTER}.workerGroupSpecs")]


def pods() -> dict[str, dict[str, Any]]:
    """Pod specs by role."""
    found = {group.get("groupName", "head"): group["template"]["spec"] for group in groups()}
    return found | {"submitter": at(manifest(), "spec.submitterPodTemplate.spec")}


def ray_pods() -> dict[str, dict[str, Any]]:
    return {role: pod for role, pod in pods().items() if role != "submitter"}


def env(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (container,) = pod["containers"]
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names))
    return {variable["name"]: variable for variable in container["env"]}


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(inner)


def quantity(text: str) -> float:
    from ray.autoscaler._private.kuberay.utils import parse_quantity

    return float(parse_quantity(text))


def argv() -> list[str]:
    python, _, *arguments = shlex.split(manifest()["spec"]["entrypoint"])
    assert python == "python"
    return arguments


def autoscaling_config() -> dict[str, Any]:
    """What Ray's autoscaler makes of the cluster."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    meta = {"name": "ltcore", "namespace": "default"}
    return _derive_autoscaling_config_from_ray_cr({"metadata": meta, "spec": at(manifest(), CLUSTER)})


# --- schema -----------------------------------------------------------------------------------------------------------


def test_it_lies_in_the_directory_that_becomes_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["ltcore"]
    assert FILE.is_file()
    assert Path(str(FILE)).is_relative_to(ROOT / "ltcore")


def test_it_passes_kuberays_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert errors(manifest()) == []


@pytest.mark.parametrize(
    ("level", "name"),
    [
        ("spec", "backoffLimit"),
        ("spec.submitterConfig", "backoffLimit"),
        (CLUSTER, "enableInTreeAutoscaling"),
        (f"{CLUSTER}.authOptions", "secretName"),
        (f"{CLUSTER}.autoscalerOptions", "idleTimeoutSeconds"),
        (HEAD, "rayStartParams"),
        (GPU, "maxReplicas"),
        (POD, "serviceAccountName"),
        (f"{POD}.securityContext", "runAsNonRoot"),
        (f"{POD}.containers.0", "volumeMounts"),
        (f"{POD}.containers.0.securityContext", "allowPrivilegeEscalation"),
        (f"{POD}.containers.0.resources", "limits"),
        (f"{POD}.containers.0.env.0", "value"),
        (f"{POD}.containers.0.env.3.valueFrom.secretKeyRef", "optional"),
        (f"{POD}.containers.0.volumeMounts.0", "mountPath"),
        (f"{POD}.volumes.0.emptyDir", "sizeLimit"),
        (f"{GPU}.template.spec.tolerations.0", "operator"),
        ("spec.submitterPodTemplate.spec", "restartPolicy"),
    ],
)
def test_a_misspelled_field_is_refused(level: str, name: str) -> None:
    wrong = manifest()
    misspelled = name[:-1]
    at(wrong, level)[misspelled] = at(wrong, level).pop(name)
    assert any(f"'{misspelled}'" in message for message in errors(wrong))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{HEAD}.rayStartParams.num-cpus", 0),
        (f"{POD}.containers.0.env.1.value", True),
        (f"{GPU}.maxReplicas", "8"),
        (f"{CLUSTER}.autoscalerOptions.version", "v3"),
        (f"{CLUSTER}.authOptions.mode", "tokens"),
        (f"{POD}.volumes.0.emptyDir.sizeLimit", "10 GB"),
    ],
)
def test_a_wrong_value_is_refused(path: str, value: Any) -> None:
    wrong = manifest()
    level, _, name = path.rpartition(".")
    assert name in at(wrong, level)
    at(wrong, level)[name] = value
    assert errors(wrong)


# --- versions and command ---------------------------------------------------------------------------------------------


def test_image_and_ray_version_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (wanted,) = [text[5:] for text in project["tool"]["uv"]["constraint-dependencies"] if text.startswith("ray==")]
    assert at(manifest(), CLUSTER)["rayVersion"] == wanted
    images = {container["image"] for pod in pods().values() for container in pod["containers"]}
    assert len(images) == 1  # one cluster, one Ray, one Python
    name, _, digest = images.pop().partition("@")
    assert wanted in name.rpartition(":")[2]
    assert digest == "sha256:YOUR-DIGEST" and "YOUR-DIGEST" in TEXT.partition("apiVersion")[0], (
        "a tag may change its meaning"
    )
    ((base, minor),) = re.findall(r"# +FROM rayproject/ray:([\d.]+)-py3(\d+)-gpu", TEXT)
    assert base == wanted
    assert SpecifierSet(project["project"]["requires-python"]).contains(f"3.{minor}")
    needed = {r.name: r.specifier for r in map(Requirement, project["project"]["dependencies"])}
    assert needed["ray"].contains(wanted)


def test_what_the_dockerfile_copies_exists() -> None:
    copied = [line.split()[:-1] for line in re.findall(r"# +COPY (.*)", TEXT)]
    assert sorted(name for names in copied for name in names) == ["README.md", "ltcore", "pipelines", "pyproject.toml"]
    assert all((ROOT / name).exists() for names in copied for name in names)


def test_the_entrypoint_is_a_pipeline_and_its_arguments_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(shlex.split(manifest()["spec"]["entrypoint"])[1])
    assert script.parent == Path("/opt/ltcore/pipelines")
    assert (ROOT / "pipelines" / script.name).is_file()
    monkeypatch.delenv("LTCORE_DATA", raising=False)
    monkeypatch.setenv("LTCORE_STORAGE", env(pods()["head"])["LTCORE_STORAGE"]["value"])
    args = cli.read_tune(None, argv())
    assert args.overrides == {}
    assert args.max_gpus == sum(group.get("maxReplicas", 0) for group in groups() if group.get("groupName") == "gpu")
    assert args.storage == "s3://YOUR-BUCKET/ltcore"


def test_the_sweep_counts_with_every_gpu_before_a_worker_is_there() -> None:
    from ltcore.runtime.cluster import Cluster
    from ltcore.runtime.placement import Placement

    head = autoscaling_config()["available_node_types"]["headgroup"]["resources"]
    bare = Cluster(
        local=False,
        cpus=head["CPU"],
        real_cpus=head["CPU"],
        gpus=0.0,
        nodes=1,
        address="",
    )
    args = cli.read_tune(None, argv())
    for loader in ("cache", "ray"):
        cfg = load_run("cifar100_lt_ce", {"data.loader": loader})
        placement = Placement.decide(args, bare, args.storage, cfg)
        assert (placement.engine, placement.scaling.gpus_per_worker) == ("trial", 1)
        assert placement.concurrent == args.max_gpus
    gpu = autoscaling_config()["available_node_types"]["gpu"]["resources"]
    assert placement.scaling.cpus_per_worker <= gpu["CPU"] // 2  # data tasks find CPUs beside every worker


# --- cluster ----------------------------------------------------------------------------------------------------------


def test_rays_autoscaler_reads_a_head_that_stays_and_gpus_that_come_and_go() -> None:
    config = autoscaling_config()
    head, gpu, cpu = (config["available_node_types"][name] for name in ("headgroup", "gpu", "cpu"))
    assert "GPU" not in head["resources"]
    assert (gpu["min_workers"], gpu["max_workers"], gpu["resources"]["GPU"]) == (0, 8, 1)
    assert (cpu["min_workers"], cpu["max_workers"]) == (0, 1)
    assert config["idle_timeout_minutes"] == 5


def test_every_start_parameter_is_an_option_of_ray_start() -> None:
    from ray.scripts.scripts import start

    options = {option.lstrip("-") for parameter in start.params for option in parameter.opts}
    for group in groups():
        assert set(group["rayStartParams"]) <= options


def test_autoscaler_v2_finds_pods_that_are_never_restarted_in_place() -> None:
    spec = at(manifest(), CLUSTER)
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert {pod["restartPolicy"] for pod in pods().values()} == {"Never"}


def test_a_lost_driver_starts_again_and_nothing_is_left_behind() -> None:
    spec = manifest()["spec"]
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["backoffLimit"] > 0
    assert spec["submitterConfig"]["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["suspend"] is False
    assert "--fresh" not in spec["entrypoint"]


@pytest.mark.parametrize("role", ["head", "gpu", "cpu"])
def test_objects_fit_into_shared_memory_and_spill_to_the_node_s_disk(role: str) -> None:
    group = next(group for group in groups() if group.get("groupName", "head") == role)
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted["/dev/shm"]["medium"] == "Memory"
    store = int(group["rayStartParams"]["object-store-memory"])
    assert store < quantity(mounted["/dev/shm"]["sizeLimit"]) < quantity(container["resources"]["limits"]["memory"])
    for used in (group["rayStartParams"]["object-spilling-directory"], env(pod)["LTCORE_CACHE"]["value"]):
        (below,) = [path for path in mounted if Path(used).is_relative_to(path)]
        assert "medium" not in mounted[below]
        assert "sizeLimit" in mounted[below]


def test_the_commands_name_what_there_is() -> None:
    name = manifest()["metadata"]["name"]
    assert f"service/{name}-head-svc" in TEXT
    assert f"job/{name} " in TEXT
    assert len(f"{name}-head-svc") <= 50
    wandb = env(pods()["head"])["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"]
    assert f"secret generic {wandb['name']} --from-file={wandb['key']}=" in TEXT
    assert f"secret generic {at(manifest(), CLUSTER)['authOptions']['secretName']} --from-literal=auth_token=" in TEXT
    for pod in ray_pods().values():
        assert f"create serviceaccount {pod['serviceAccountName']}\n" in TEXT


# --- security ---------------------------------------------------------------------------------------------------------


def test_every_pod_says_its_authentication_mode() -> None:
    assert at(manifest(), f"{CLUSTER}.authOptions") == {"mode": "token", "secretName": "ltcore-ray"}
    for role, pod in pods().items():
        assert env(pod)["RAY_AUTH_MODE"]["value"] == "token", role
        assert "RAY_AUTH_TOKEN" not in env(pod), role  # the operator adds it, from that Secret


def test_every_ray_pod_may_read_and_write() -> None:
    for role, pod in ray_pods().items():
        assert pod["serviceAccountName"], role
        assert env(pod)["LTCORE_STORAGE"] == env(pods()["head"])["LTCORE_STORAGE"], role
        assert env(pod)["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"]["optional"] is True, role


def literal_secrets(value: Any) -> list[str]:
    """Names of variables that hold a secret otherwise than by reference."""
    named = [item for item in mappings(value) if re.search("KEY|TOKEN|SECRET", str(item.get("name", "")))]
    return [item["name"] for item in named if set(item) != {"name", "valueFrom"}]


def test_there_is_no_secret_in_it() -> None:
    assert literal_secrets(manifest()) == []
    assert not re.search(r"(?i)(api_key|secret|password|auth_token)\s*[:=]\s*['\"]?[\w/+-]{12,}", TEXT)
    assert not re.search(r"AKIA[0-9A-Z]{16}", TEXT)
    leaky = manifest()
    at(leaky, f"{POD}.containers.0.env").append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"})
    assert literal_secrets(leaky) == ["AWS_SECRET_ACCESS_KEY"]


def test_no_container_is_root_or_may_become_it() -> None:
    for role, pod in pods().items():
        assert pod["securityContext"]["runAsNonRoot"] is True, role
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, role
        assert role == "head" or pod["automountServiceAccountToken"] is False
    contexts = [container["securityContext"] for pod in pods().values() for container in pod["containers"]]
    for context in [*contexts, at(manifest(), f"{CLUSTER}.autoscalerOptions.securityContext")]:
        assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_a_policy_lets_in_the_clusters_own_pods_and_the_operators_look_at_the_dashboard() -> None:
    policy = yaml.safe_load((FILE.parent / "networkpolicy.yaml").read_text(encoding="utf-8"))
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    spec = policy["spec"]
    assert set(spec) == {"podSelector", "policyTypes", "ingress"} and spec["policyTypes"] == ["Ingress"]
    wanted = spec["podSelector"]["matchLabels"]
    templates = [at(manifest(), "spec.submitterPodTemplate"), *(group["template"] for group in groups())]
    assert wanted and all(template["metadata"]["labels"].items() >= wanted.items() for template in templates)
    own, operator = spec["ingress"]
    assert own == {"from": [{"podSelector": spec["podSelector"]}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    assert "podSelector" in operator["from"][0], "not everybody in any namespace"
    assert "networkpolicy.yaml" in TEXT


def test_a_gpu_pod_that_is_ended_is_drained_first_and_has_time_for_it() -> None:
    pod = pods()["gpu"]
    (container,) = pod["containers"]
    shell, option, command = container["lifecycle"]["preStop"]["exec"]["command"]
    assert subprocess.run([shell, "-n", option, command], capture_output=True).returncode == 0
    _, _, module, seconds, _ = shlex.split(command.partition("&&")[0])
    assert importlib.util.find_spec(module)
    assert 60 < int(seconds) < pod["terminationGracePeriodSeconds"]
