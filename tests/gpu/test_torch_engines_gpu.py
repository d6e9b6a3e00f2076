"""Peers in PyTorch on a real GPU: eager, compiled, as CUDA graphs; rows on the host and there."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from relukan_deploy.bench.peers import PEERS, build
from relukan_deploy.bench.subjects import Shape

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from relukan_deploy.bench.subjects.torch_engines import peer_subjects  # noqa: E402
from relukan_deploy.bench.subjects.torch_subjects import TORCH_ENGINES, TorchEngine  # noqa: E402
from relukan_deploy.bench.training import training_turns  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
    pytest.mark.filterwarnings("default"),  # what a machine's PyTorch and Triton announce is not tested here
]

SHAPE = Shape((4, 16, 2), grid=5, order=3, domain=np.tile((0.0, 1.0), (4, 1)))
INSTALLED = [name for name in PEERS if name != "pykan" or importlib.util.find_spec("kan")]


@pytest.mark.parametrize("engine", TORCH_ENGINES)
@pytest.mark.parametrize("name", INSTALLED)
def test_every_peer_answers_as_on_the_cpu_and_says_where_its_time_goes(name: str, engine: TorchEngine) -> None:
    subjects, skipped = peer_subjects(SHAPE, [name], threads=1, engines=[engine])
    assert not skipped
    assert {subject.contender.data for subject in subjects} == {"host", "device"}
    for subject in subjects:
        for batch in (1, 300):
            turn = subject.prepare(batch)  # compares with eager
            assert min(turn(20)) > 0
            split = subject.split()
            assert split is not None
            assert split.compute > 0
            assert (split.to_device > 0, split.to_host > 0) == (subject.contender.data == "host",) * 2
            subject.release()
        assert subject.difference is not None
        assert subject.difference < 1e-4
        subject.close()


@pytest.mark.parametrize("engine", TORCH_ENGINES)
@pytest.mark.parametrize("name", INSTALLED)
def test_every_peer_learns(name: str, engine: TorchEngine) -> None:
    module = next(iter(build(name, SHAPE).values())).cuda()
    x = torch.rand(500, 4, device="cuda")
    y = torch.sin(2 * torch.pi * x.mean(1, keepdim=True)).expand(-1, 2)

    def loss() -> float:
        with torch.no_grad():
            return float(torch.nn.functional.mse_loss(module(x), y))

    before = loss()
    assert min(training_turns(module, SHAPE, 64, engine=engine)(100)) > 0
    assert loss() < 0.97 * before
