"""What a step holds in memory."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch

from relukan_deploy.model import ReLUKAN
from relukan_deploy.train import fit
from relukan_deploy.training.loop import Method
from relukan_deploy.training.memory import step_bytes

METHOD = Method(epochs=1, batch_size=512, learning_rate=1e-3)


def test_it_grows_with_the_rows_at_a_time() -> None:
    network = ReLUKAN([16, 8, 1])
    x, y = torch.rand(512, 16), torch.rand(512, 1)
    whole, half = (step_bytes(network, x, y, dataclasses.replace(METHOD, micro_batch=size)) for size in (None, 256))
    basis = 512 * 16 * 8 * 4  # of the first layer, in bytes
    weights = 4 * sum(each.numel() for each in network.parameters())
    assert whole > 4 * basis
    assert whole - half == pytest.approx((whole - 5 * weights) / 2, rel=0.1)  # weights, average, gradients, two moments


def test_the_network_is_left_as_it_was() -> None:
    network = ReLUKAN([2, 3, 1], batch_norm=True).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step_bytes(network, torch.rand(8, 2), torch.rand(8, 1), METHOD)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(each.grad is None for each in network.parameters())


def test_fit_states_it() -> None:
    x = torch.rand(1000, 8).numpy()
    large, small = (fit(x, x[:, 0], epochs=1, batch_size=400, micro_batch=size, device="cpu") for size in (None, 20))
    assert large.step_bytes > 2 * small.step_bytes


PROGRAM = """
import resource
import numpy as np
import relukan_deploy
from relukan_deploy.errors import InputError
relukan_deploy.fit(np.random.rand(20, 2), np.random.rand(20), epochs=1)  # what is loaded once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
x = np.random.rand(20_000, 32)
for micro_batch in (None, 100):
    try:
        result = relukan_deploy.fit(x, x[:, 0], epochs=1, batch_size=16_000, micro_batch=micro_batch, device="cpu")
        print("trained")
    except InputError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as Linux allows")
def test_a_batch_that_does_not_fit_is_told_and_fits_in_micro_batches() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=True)
    refused, trained = result.stdout.splitlines()
    assert refused.startswith("a step does not fit the memory: choose a smaller micro_batch")
    assert trained == "trained"
