"""The file for Ray's own launcher: known to Ray, with the token asked for on every host."""

from typing import Any

from ray.autoscaler._private.util import prepare_config, validate_config
from ruamel.yaml import YAML

from tests.sweep.running import REPOSITORY

CLUSTER: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "cluster" / "ray-up" / "cluster.yaml")


def test_ray_knows_it() -> None:
    """Otherwise `ray up` refuses it, or starts fewer workers than are named."""
    prepared = prepare_config(CLUSTER)
    validate_config(prepared)
    (kind,) = prepared["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(CLUSTER["provider"]["worker_ips"])


def test_every_host_asks_for_the_token() -> None:
    """Otherwise anyone on the hosts' network runs code on them."""
    starts = [
        line
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for line in CLUSTER[key]
        if "ray start" in line
    ]
    assert len(starts) == 2
    assert all(line.startswith("RAY_AUTH_MODE=token ") for line in starts)
    assert CLUSTER["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "chmod 600 ~/.ray/auth_token" in CLUSTER["setup_commands"][0]
    head = next(line for line in starts if "--head" in line)
    assert f"--node-ip-address={CLUSTER['provider']['head_ip']} " in head
    assert "--dashboard-host=127.0.0.1" in head
