"""What the Helm chart and the compose file promise to whoever runs them. `make lint` checks their form."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import read_settings

ROOT = Path(__file__).parents[2]
NEEDS_HELM = pytest.mark.skipif(
    importlib.util.find_spec("helm_python") is None, reason="there is no Helm for this platform in the lock file"
)


def rendered(values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    # A process of its own: Helm brings the runtime of Go along.
    return subprocess.run(
        [sys.executable, ".ci/check-chart", json.dumps(values)], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """The manifests with the values as they come, by kind and name."""
    answer = rendered({})
    assert answer.returncode == 0, answer.stderr
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in json.loads(answer.stdout)}


def settings_of(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container["env"]}


@NEEDS_HELM
def test_the_chart_is_these_manifests(manifests: dict[str, Any]) -> None:
    assert set(manifests) == {
        "Deployment/shop-baton",
        "Job/shop-baton-migrate",
        "Service/shop-baton",
        "Service/shop-baton-headless",
        "PodDisruptionBudget/shop-baton",
        "NetworkPolicy/shop-baton",
    }
    assert manifests["Service/shop-baton-headless"]["spec"]["clusterIP"] == "None"
    disruption = manifests["PodDisruptionBudget/shop-baton"]["spec"]
    assert (disruption["maxUnavailable"], disruption["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


@NEEDS_HELM
def test_what_selects_servers_selects_all_of_them_and_no_migration(manifests: dict[str, Any]) -> None:
    server = manifests["Deployment/shop-baton"]["spec"]["template"]["metadata"]["labels"].items()
    migration = manifests["Job/shop-baton-migrate"]["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        manifests["Deployment/shop-baton"]["spec"]["selector"]["matchLabels"],
        manifests["Service/shop-baton"]["spec"]["selector"],
        manifests["Service/shop-baton-headless"]["spec"]["selector"],
        manifests["PodDisruptionBudget/shop-baton"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy/shop-baton"]["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= server
        assert not selector.items() <= migration


@NEEDS_HELM
def test_the_schema_is_migrated_before_servers_start(manifests: dict[str, Any]) -> None:
    job = manifests["Job/shop-baton-migrate"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert job["spec"]["template"]["spec"]["containers"][0]["args"] == ["migrate"]


@NEEDS_HELM
@pytest.mark.parametrize("name", ["Deployment/shop-baton", "Job/shop-baton-migrate"])
def test_pods_have_no_rights_and_take_secrets_by_reference(manifests: dict[str, Any], name: str) -> None:
    pod = manifests[name]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (database,) = [one for one in container["env"] if one["name"] == "BATON_DATABASE_URL"]
    assert database == {
        "name": "BATON_DATABASE_URL",
        "valueFrom": {"secretKeyRef": {"name": "baton-database", "key": "url"}},
    }


@NEEDS_HELM
@pytest.mark.parametrize("stopping", [None, {"leaveSeconds": 10, "drainSeconds": 120, "graceSeconds": 20}])
def test_a_server_has_time_to_drain_and_is_left_to_it(stopping: dict[str, int] | None) -> None:
    answer = rendered({} if stopping is None else {"stopping": stopping})
    pod = next(one for one in json.loads(answer.stdout) if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    told = settings_of(container)
    settings = read_settings({name: value for name, value in told.items() if name != "POD_IP"})
    leave_seconds = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    needed_seconds = leave_seconds + settings.limits.drain_seconds + settings.stop_grace_seconds
    assert pod["terminationGracePeriodSeconds"] > needed_seconds
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > needed_seconds
    assert container["readinessProbe"]["grpc"] == {"port": 7330}
    assert settings.listen_address == "0.0.0.0:7330"
    assert told["BATON_REPLICA_ADDRESS"] == "$(POD_IP):7330"
    assert list(told).index("POD_IP") < list(told).index("BATON_REPLICA_ADDRESS"), "it is read from those before"


@NEEDS_HELM
def test_settings_arrive_as_they_were_given() -> None:
    given = {"BATON_MAX_QUEUED_BYTES": 67_108_864, "BATON_LEASE_SECONDS": 2.5, "BATON_LOG_FORMAT": "json"}
    answer = rendered({"settings": given, "retentionDays": 3_650_000})
    pod = next(one for one in json.loads(answer.stdout) if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    told = settings_of(pod["containers"][0])
    assert {name: told[name] for name in given} == {name: str(value) for name, value in given.items()}
    settings = read_settings({name: value for name, value in told.items() if name != "POD_IP"})
    assert (settings.limits.max_queued_bytes, settings.retention_days) == (67_108_864, 3_650_000)


@NEEDS_HELM
@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"replicas": 0}, "/replicas"),
        ({"database": {"secretName": "", "secretKey": "url"}}, "/database/secretName"),
        ({"replica": 3}, "'replica' not allowed"),
        ({"settings": {"BATON_DATABASE_URL": "postgresql://u:password@h/d"}}, "BATON_DATABASE_URL"),
        ({"settings": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"settings": {"PATH": "x"}}, "invalid propertyName 'PATH'"),
    ],
)
def test_values_that_cannot_be_are_refused(values: dict[str, Any], told: str) -> None:
    answer = rendered(values)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert told in answer.stderr


def test_the_compose_file_starts_three_replicas_that_reach_each_other() -> None:
    services = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"]
    replicas = {name: one for name, one in services.items() if name.startswith("baton-")}
    assert len(replicas) == 3
    ports = {port for one in replicas.values() for port in one["ports"]}
    assert ports == {f"127.0.0.1:{port}:7330" for port in (7330, 7331, 7332)}
    for name, one in replicas.items():
        environment = one["environment"]
        assert environment["BATON_REPLICA_ADDRESS"] == f"{name}:7330"
        assert environment["PGHOST"] == "postgres"
        assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"].startswith("http://jaeger:")
        assert one["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
        assert one["healthcheck"]["test"] == ["CMD", "baton", "health"]
        read_settings({key: value for key, value in environment.items() if key.startswith("BATON_")})
    assert {"postgres", "migrate", "jaeger"} <= set(services)
    assert services["postgres"]["restart"] == "unless-stopped"
    assert services["postgres"]["healthcheck"]["test"][1:4] == ["pg_isready", "--host", "127.0.0.1"]
