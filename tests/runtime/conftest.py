"""A `Batcher` around a runner that its tests can stop and let fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from batching_runners import Doubling

from relukan_deploy.runtime.batching import Batcher


@pytest.fixture
def runner() -> Doubling:
    return Doubling()


@pytest.fixture
def batcher(runner: Doubling) -> Iterator[Batcher]:
    """Batches of at most 8 rows, 20 waiting."""
    batcher = Batcher(runner, max_batch=8, max_queue=20)
    yield batcher
    runner.gate.set()
    batcher.close()
