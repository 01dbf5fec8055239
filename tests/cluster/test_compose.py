"""The tracking server of one host: known to compose, on loopback alone, with no secret in it."""

import json
import re
import urllib.error
import urllib.request
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
from ruamel.yaml import YAML

from tests.cluster.test_kuberay import named
from tests.mlflow_server import new_database, serving
from tests.sweep.running import REPOSITORY

COMPOSE: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "cluster" / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def test_compose_knows_it() -> None:
    """Otherwise `docker compose up` refuses it."""
    schemas = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text())
    jsonschema.validators.validator_for(schema)(schema).validate(COMPOSE)


def test_its_ports_are_this_hosts_alone() -> None:
    """Otherwise a server that asks nobody who they are is on the network."""
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "ports" not in SERVICES["postgres"]


def test_no_secret_is_in_it() -> None:
    """Otherwise who reads the repository reads the database and the store."""
    secret = re.compile("PASSWORD|SECRET|ACCESS_KEY")
    found = [
        value
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if secret.search(name)
    ]
    assert len(found) == 6
    assert all(re.fullmatch(r"\$\{\w+(:\?.+)?\}", value) for value in found)
    said = [str(word) for service in SERVICES.values() for word in service.get("command", [])]
    assert not [word for word in said if "$" in word or re.search(r"://[^/]*:[^/]*@", word)]
    assert ".env" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_nobody_is_root() -> None:
    """Otherwise who breaks out of a container owns the host."""
    for name, service in SERVICES.items():
        if service["image"] != "lmim:tracking":  # whose file says who it is, see test_containerfile.py
            assert int(service["user"].split(":")[0]) >= 999, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"]


def test_mlflow_answers_to_the_names_it_is_reached_by(tmp_path: Path) -> None:
    """Otherwise every trial's metrics are refused, or a page that a colleague opens reads the server."""
    here = SERVICES["mlflow"]["command"]
    there = named("Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]["args"]
    (allowed,) = {word for words in (here, there) for word in words if word.startswith("--allowed-hosts=")}
    with serving(tmp_path, new_database(tmp_path), allowed) as server:

        def says(host: str) -> int:
            request = urllib.request.Request(
                f"{server.uri}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host}
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        assert {host: says(host) for host in ("mlflow:5000", "127.0.0.1:5000", "localhost:5000")} == {
            "mlflow:5000": 200,
            "127.0.0.1:5000": 200,
            "localhost:5000": 200,
        }
        assert says("stranger.example:5000") == 403
