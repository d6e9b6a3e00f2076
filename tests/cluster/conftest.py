"""The cluster that these tests share: ten seconds and 1.5 GB."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cluster_nodes import Cluster, why_not

from relukan_deploy.parity import golden_inputs
from relukan_deploy.spec import KanSpec


@pytest.fixture(scope="session")
def retrained(spec: KanSpec, make_spec: Callable[..., KanSpec]) -> KanSpec:
    """The network `spec` with other weights."""
    return make_spec(spec.widths, seed=7, columns=spec.columns, targets=spec.targets)


@pytest.fixture(scope="session")
def table(spec: KanSpec, retrained: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows x, and the float64 reference's answers of version 1 and of version 2."""
    path = tmp_path_factory.mktemp("table") / "table.npz"
    x = np.concatenate([golden_inputs(spec), golden_inputs(retrained)])
    np.savez(path, x=x, y1=spec.evaluate(x), y2=retrained.evaluate(x))
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that run Ray, of which only the first can read the folder `cluster.files`."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # the paths of sockets have to be short
    cluster = Cluster(folder, tmp_path_factory.mktemp("files"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder)
