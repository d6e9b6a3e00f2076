"""`ray_app` on two nodes: scaling, new versions, and the loss of a node, all under load.

The tests run in the order in which they stand: each goes on with what the last has deployed.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from cluster_clients import Clients, Seen
from cluster_nodes import Cluster, wait_until

from relukan_deploy.api import export
from relukan_deploy.bundle import write_manifest
from relukan_deploy.spec import KanSpec

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[2] / "docs" / "ray.md"
DEPLOY = """
from ray import serve
from relukan_deploy.runtime import ray_app

serve.run(ray_app("{bundle}", {options}))
"""
QUICKLY = {"upscale_delay_s": 1, "look_back_period_s": 2, "metrics_interval_s": 0.5}
SCALING = f"replicas=(1, 2), target_ongoing_requests=4, deployment={{'autoscaling_config': {QUICKLY}}}"
ONE_A_NODE = "replicas=2, deployment={'max_replicas_per_node': 1, 'max_constructor_retry_count': 1}"


@pytest.fixture(scope="module")
def service(cluster: Cluster, spec: KanSpec) -> Cluster:
    """The cluster with the service of the documentation, on the bundle's version 1."""
    export(spec, cluster.files / "model")
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (cluster.files / "service.py").write_text(block)
    cluster.run("serve", "run", "--non-blocking", "service:app")
    return cluster


def deploy(service: Cluster, options: str, bundle: str = "model") -> None:
    (service.files / "deploy.py").write_text(DEPLOY.format(bundle=bundle, options=options))
    service.run(sys.executable, "deploy.py")


def wait_for_replicas(service: Cluster, count: int) -> None:
    wait_until(lambda: service.replicas() == count, 90, f"{count} replicas")


def assert_nothing_was_lost(seen: Seen) -> None:
    print(seen)  # shown with -s, and with a failure
    assert (seen.wrong, seen.lost) == (0, 0), seen


def test_the_documented_service_answers(service: Cluster, table: Path) -> None:
    with Clients(table, 1, service.addresses[:1]) as clients:
        pass
    assert_nothing_was_lost(clients.seen)
    assert not clients.seen.failed


def test_a_replica_looks_for_nothing_new(service: Cluster) -> None:
    url = f"http://{service.addresses[0]}:8000/v2/repository/models/model/load"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=30)
    with caught.value as answer:
        assert "'model' was given as an opened bundle" in json.load(answer)["error"]


def test_a_replica_is_added_when_requests_wait(service: Cluster, table: Path) -> None:
    deploy(service, SCALING)
    wait_for_replicas(service, 1)
    with Clients(table, 16, service.addresses) as clients:
        wait_for_replicas(service, 2)
    assert_nothing_was_lost(clients.seen)


def test_a_retrained_bundle_is_deployed_under_load(service: Cluster, table: Path, retrained: KanSpec) -> None:
    export(retrained, service.files / "model")
    with Clients(table, 8, service.addresses) as clients:
        deploy(service, ONE_A_NODE)
        wait_for_replicas(service, 2)
    assert_nothing_was_lost(clients.seen)
    assert set(clients.seen.answered) == {"1", "2"}


def test_every_node_with_a_replica_answers(service: Cluster, table: Path) -> None:
    for address in service.addresses:
        with Clients(table, 1, [address]) as clients:
            pass
        assert_nothing_was_lost(clients.seen)


def test_a_bundle_that_answers_wrongly_is_refused_and_the_old_one_stays(
    service: Cluster, table: Path, retrained: KanSpec
) -> None:
    bundle = export(retrained, service.files / "wrong" / "model")
    x, y = bundle.golden()
    np.savez(bundle.path / "golden.npz", x=x, y=y + 1)
    write_manifest(bundle.path, bundle.manifest)
    with (
        Clients(table, 8, service.addresses) as clients,
        pytest.raises(AssertionError, match="Failed to update"),
    ):
        deploy(service, ONE_A_NODE, "wrong/model")
    assert_nothing_was_lost(clients.seen)
    assert set(clients.seen.answered) == {"2"}


def test_a_node_is_lost_under_load(service: Cluster, table: Path) -> None:
    deploy(service, ONE_A_NODE)
    wait_for_replicas(service, 2)
    with Clients(table, 8, service.addresses) as clients:
        service.nodes[1].kill()
        wait_for_replicas(service, 1)
        service.join()
        wait_for_replicas(service, 2)
    assert_nothing_was_lost(clients.seen)


def test_an_option_that_there_is_not_is_refused_before_anything_is_deployed(service: Cluster) -> None:
    with pytest.raises(AssertionError, match="unexpected keyword argument 'max_bach'"):
        deploy(service, "max_bach=2")
