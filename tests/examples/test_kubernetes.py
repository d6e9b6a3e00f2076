"""The Kubernetes manifests: against the schemas, and against one another."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import kubernetes_validate
import pytest
import yaml

REPOSITORY = Path(__file__).parent.parent.parent
FOLDER = REPOSITORY / "docs/kubernetes"
OLDEST = "1.30"  # the first that knows a sleep before the end


class Manifest(NamedTuple):
    """One document of a manifest file."""

    file: str
    content: dict[str, Any]

    @property
    def kind(self) -> str:
        kind: str = self.content["kind"]
        return kind

    @property
    def name(self) -> str:
        return f"{self.file}:{self.kind}"


MANIFESTS = [
    Manifest(path.name, content)
    for path in sorted(FOLDER.glob("*.yaml"))
    for content in yaml.safe_load_all(path.read_text())
]
CUSTOM = [manifest for manifest in MANIFESTS if manifest.kind in ("InferenceService", "RayService")]
DEPLOYMENTS = [manifest for manifest in MANIFESTS if manifest.kind == "Deployment"]

SERVERS = [deployment for deployment in DEPLOYMENTS if deployment.file.startswith("relukan-serve")]


def beside(manifest: Manifest, kind: str) -> list[dict[str, Any]]:
    """What else of a kind the same file has."""
    return [other.content for other in MANIFESTS if (other.file, other.kind) == (manifest.file, kind)]


def labels_of(deployment: Manifest) -> dict[str, str]:
    labels: dict[str, str] = deployment.content["spec"]["template"]["metadata"]["labels"]
    return labels


def container_of(deployment: Manifest) -> dict[str, Any]:
    (container,) = deployment.content["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


def pods_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod template at any depth."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if key == "template":
            yield inner
        yield from pods_in(inner)


@pytest.mark.parametrize("manifest", [m for m in MANIFESTS if m not in CUSTOM], ids=lambda manifest: manifest.name)
def test_kubernetes_takes_it_from_the_oldest_version_on(manifest: Manifest) -> None:
    for version in (OLDEST, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(manifest.content, version, strict=True)


def test_kubernetes_refuses_a_misspelt_field() -> None:
    content = copy.deepcopy(DEPLOYMENTS[0].content)
    content["spec"]["template"]["spec"]["terminationGracePeriod"] = 45
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(content, OLDEST, strict=True)


@pytest.mark.parametrize("manifest", CUSTOM, ids=lambda manifest: manifest.name)
def test_the_pods_in_a_custom_resource_are_pods(manifest: Manifest) -> None:
    for template in pods_in(manifest.content):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("manifest", CUSTOM, ids=lambda manifest: manifest.name)
def test_its_operator_takes_it(manifest: Manifest) -> None:
    """Against the CustomResourceDefinitions of KServe and KubeRay, which no package holds."""
    folder = os.environ.get("RELUKAN_CRDS")
    if not folder:
        pytest.skip(f"the schema of {manifest.kind} is not here: set RELUKAN_CRDS to a folder with its definition")
    group, _, version = manifest.content["apiVersion"].partition("/")
    definitions = [yaml.safe_load(path.read_text()) for path in Path(folder).glob("*.yaml")]
    (schema,) = (
        offered["schema"]["openAPIV3Schema"]
        for spec in (definition["spec"] for definition in definitions)
        for offered in spec["versions"]
        if (spec["group"], spec["names"]["kind"], offered["name"]) == (group, manifest.kind, version)
    )
    jsonschema.Draft202012Validator(strict(schema)).validate(manifest.content)


def strict(schema: Any) -> Any:
    """A schema that also refuses what it does not know, which the API server would drop."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    free = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not free:
        result["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    return result


# --- what no schema sees


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda manifest: manifest.name)
def test_the_service_finds_the_pods_and_their_ports(deployment: Manifest) -> None:
    (service,) = beside(deployment, "Service")
    assert service["spec"]["selector"].items() <= labels_of(deployment).items()
    ports = {port["name"] for port in container_of(deployment)["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda manifest: manifest.name)
def test_the_disruption_budget_is_for_these_pods(deployment: Manifest) -> None:
    (budget,) = beside(deployment, "PodDisruptionBudget")
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels_of(deployment).items()


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda manifest: manifest.name)
def test_liveness_is_not_readiness(deployment: Manifest) -> None:
    container = container_of(deployment)
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    assert paths == {
        "startup": "/v2/health/ready",
        "readiness": "/v2/health/ready",
        "liveness": "/v2/health/live",
    }


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda manifest: manifest.name)
def test_metrics_are_scraped_from_a_port_of_the_container(deployment: Manifest) -> None:
    annotations = deployment.content["spec"]["template"]["metadata"]["annotations"]
    ports = {str(port["containerPort"]) for port in container_of(deployment)["ports"]}
    assert annotations["prometheus.io/port"] in ports


@pytest.mark.parametrize("deployment", SERVERS, ids=lambda manifest: manifest.name)
def test_relukan_serve_takes_the_arguments_and_listens_on_the_port(
    deployment: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = pytest.importorskip("relukan_deploy.runtime.serving.server")
    from relukan_deploy.cli.serve import main

    asked: list[Any] = []
    monkeypatch.setattr(server, "serve", asked.append)
    container = container_of(deployment)
    assert main(container["args"]) == 0
    assert asked[0].host == "0.0.0.0"
    assert asked[0].http_port == container["ports"][0]["containerPort"]


@pytest.mark.parametrize("deployment", SERVERS, ids=lambda manifest: manifest.name)
def test_what_has_come_is_answered_before_the_pod_is_killed(deployment: Manifest) -> None:
    server = pytest.importorskip("relukan_deploy.runtime.serving.server")
    spec = deployment.content["spec"]["template"]["spec"]
    before = container_of(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] >= before + server._PATIENCE + 10


def test_triton_knows_the_arguments() -> None:
    found = list(REPOSITORY.glob(".venv-triton/lib/*/site-packages/pytriton/tritonserver/bin/tritonserver"))
    if not found:
        pytest.skip("Triton is not here: benchmarks/triton/setup.sh .venv-triton")
    environment = os.environ | {"LD_LIBRARY_PATH": str(found[0].parents[3] / "nvidia_pytriton.libs")}
    said = subprocess.run([found[0], "--help"], env=environment, capture_output=True, text=True, timeout=60)
    known = set(re.findall(r"^ +(--[a-z-]+)", said.stdout + said.stderr, re.MULTILINE))
    (deployment,) = (manifest for manifest in DEPLOYMENTS if manifest.file == "triton.yaml")
    (service,) = (manifest.content for manifest in CUSTOM if manifest.kind == "InferenceService")
    arguments = [*container_of(deployment)["args"][1:], *service["spec"]["predictor"]["model"]["args"]]
    assert {argument.split("=")[0] for argument in arguments} <= known


ASK_RAY = """
import json, sys
from ray import serve
from ray.serve.schema import ServeDeploySchema
config, name, source = json.load(sys.stdin)
ServeDeploySchema(**config)
namespace = {}
exec(source, namespace)
assert isinstance(namespace[name], serve.Application), namespace[name]
"""


@pytest.mark.slow
def test_ray_takes_the_configuration_and_the_module_that_it_names(bundle_path: Path) -> None:
    beside_the_tests = REPOSITORY / ".venv-ray/bin/python"  # where it is not among the other packages
    python = (
        sys.executable if importlib.util.find_spec("ray") else beside_the_tests if beside_the_tests.exists() else None
    )
    if python is None:
        pytest.skip("Ray is not installed")
    (service,) = (manifest for manifest in CUSTOM if manifest.kind == "RayService")
    (config_map,) = beside(service, "ConfigMap")
    config = yaml.safe_load(service.content["spec"]["serveConfigV2"])
    module, _, name = config["applications"][0]["import_path"].partition(":")
    source = config_map["data"][f"{module}.py"].replace("/models/model", str(bundle_path))
    asked = json.dumps([config, name, source])
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([python, "-c", ASK_RAY], input=asked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_names_every_file() -> None:
    page = FOLDER.with_suffix(".md").read_text()
    assert sorted(re.findall(r"\]\(kubernetes/(.*?)\)", page)) == sorted({manifest.file for manifest in MANIFESTS})


def test_the_autoscaler_scales_the_deployment_and_has_replicas_to_itself() -> None:
    (deployment,) = (manifest for manifest in DEPLOYMENTS if beside(manifest, "HorizontalPodAutoscaler"))
    (autoscaler,) = beside(deployment, "HorizontalPodAutoscaler")
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment.content["metadata"]["name"]
    assert "replicas" not in deployment.content["spec"]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.name)
def test_every_claim_and_config_map_that_is_mounted_is_there(manifest: Manifest) -> None:
    for template in pods_in(manifest.content):
        spec = template["spec"]
        for volume in spec.get("volumes", ()):
            for kind, source, key in (
                ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
                ("ConfigMap", "configMap", "name"),
            ):
                if source in volume:
                    assert volume[source][key] in {other["metadata"]["name"] for other in beside(manifest, kind)}
        mounted = {mount["name"] for each in spec["containers"] for mount in each.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in spec.get("volumes", ())}
