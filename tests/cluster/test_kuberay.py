"""The manifests for Kubernetes: known to it, and true to what is promised of users, secrets and reach."""

import itertools
import re
from typing import Any

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from tests.sweep.running import REPOSITORY

FOLDER = REPOSITORY / "cluster" / "kuberay"
VERSION = "1.37"
RAY = {"RayCluster", "RayJob"}


def read() -> list[dict[str, Any]]:
    """Each object of the manifests."""
    yaml = YAML(typ="safe")
    files = [file for file in sorted(FOLDER.glob("*.yaml")) if file.name != "kustomization.yaml"]
    return [found for file in files for found in yaml.load_all(file)]


OBJECTS = read()
"""Each object of the manifests."""


def named(kind: str, name: str = "") -> dict[str, Any]:
    """The one object of this kind, and of this name."""
    (found,) = (one for one in OBJECTS if one["kind"] == kind and name in ("", one["metadata"].get("name")))
    return found


def templates(found: Any) -> list[dict[str, Any]]:
    """The specs of all pods in an object, however deep."""
    if isinstance(found, list):
        return [pod for one in found for pod in templates(one)]
    if not isinstance(found, dict):
        return []
    here = [found] if "containers" in found else []
    return here + [pod for one in found.values() for pod in templates(one)]


PODS = [pod for one in OBJECTS for pod in templates(one)]
CONTAINERS = [container for pod in PODS for container in pod["containers"]]


@pytest.mark.parametrize(
    "found", [one for one in OBJECTS if one["kind"] not in RAY], ids=lambda one: one["kind"]
)
def test_kubernetes_knows_each_object(found: dict[str, Any]) -> None:
    """Otherwise `kubectl apply` refuses it, or drops a key that is spelt wrong in silence."""
    kubernetes_validate.validate(found, VERSION, strict=True)


def test_kubernetes_knows_rays_pods() -> None:
    """Otherwise KubeRay takes the cluster and makes none of its pods."""
    found = [pod for kind in RAY for pod in templates(named(kind))]
    assert len(found) == 4, "head, two groups, submitter"
    for spec in found:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_kuberays_rules() -> None:
    """Otherwise its operator refuses the cluster or the job, which `kubectl` does not say."""
    spec = named("RayCluster")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    job = named("RayJob")["spec"]
    assert job["clusterSelector"] == {"ray.io/cluster": named("RayCluster")["metadata"]["name"]}
    assert not {"rayClusterSpec", "backoffLimit", "suspend"} & job.keys(), "not of a cluster that is there"


def test_nobody_is_root() -> None:
    """Otherwise the namespace, which allows no root, refuses the pods; or a trial owns its node."""
    labels = named("Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in PODS:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] >= 999
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
    for container in CONTAINERS:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_no_secret_is_in_a_file() -> None:
    """Otherwise who reads the repository reads the database."""
    assert not [one for one in OBJECTS if one["kind"] == "Secret"]
    secret = re.compile("password|token|secret", re.IGNORECASE)
    for container in CONTAINERS:
        plain = [
            one["name"]
            for one in container.get("env", [])
            if "value" in one and not one["name"].endswith("_FILE")
        ]
        assert not [name for name in plain if secret.search(name)]
        assert not [word for word in container.get("args", []) if re.search(r"://[^/]*:[^/]*@", word)]


def test_only_the_namespace_reaches_ray_and_mlflow_and_only_mlflow_the_database() -> None:
    """Otherwise any pod of the Kubernetes cluster may write results, or read and delete the database."""
    assert {one["metadata"]["name"] for one in OBJECTS if one["kind"] == "NetworkPolicy"} == {
        "namespace-alone",
        "postgres",
    }
    all_pods = named("NetworkPolicy", "namespace-alone")["spec"]
    but = {"key": "app", "operator": "NotIn", "values": ["postgres"]}
    assert all_pods["podSelector"] == {"matchExpressions": [but]}
    assert all_pods["ingress"] == [{"from": [{"podSelector": {}}]}]
    database = named("NetworkPolicy", "postgres")["spec"]
    assert database["podSelector"] == {"matchLabels": {"app": "postgres"}}
    (rule,) = database["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app": "mlflow"}}}]
    services = [one["spec"] for one in OBJECTS if one["kind"] == "Service"]
    assert {one.get("type", "ClusterIP") for one in services} == {"ClusterIP"}


def test_the_pieces_fit() -> None:
    """Otherwise the sweep finds no cluster, no server, no results or no GPU."""
    spec = named("RayCluster")["spec"]
    version = re.search(r"^ray==(.+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert version
    assert spec["rayVersion"] == version[1]
    words = named("RayJob")["spec"]["entrypoint"].split()
    said = dict(itertools.pairwise(words))
    assert said["--address"] == "auto"
    assert said["--tracking-uri"] == "http://mlflow:5000"
    assert named("Service", "mlflow")["spec"]["ports"] == [{"port": 5000}]
    claims = {
        one["metadata"]["name"]: one["spec"] for one in OBJECTS if one["kind"] == "PersistentVolumeClaim"
    }
    assert claims["results"]["accessModes"] == ["ReadWriteMany"]
    for pod in templates(spec):
        assert pod["volumes"] == [{"name": "results", "persistentVolumeClaim": {"claimName": "results"}}]
        assert pod["containers"][0]["volumeMounts"] == [{"name": "results", "mountPath": said["--out"]}]
    groups = {one["groupName"]: one["template"]["spec"]["containers"][0] for one in spec["workerGroupSpecs"]}
    assert "nvidia.com/gpu" not in groups["cpu"]["resources"]["limits"]
    assert groups["gpu"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (groups["cpu"]["image"], groups["gpu"]["image"]) == ("lmim:cpu", "lmim:cuda")
