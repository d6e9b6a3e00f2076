"""Training on a real GPU: it learns as on the CPU, in every way that `fit` offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from relukan_deploy.errors import InputError  # noqa: E402
from relukan_deploy.train import Epoch, FitResult, fit  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU"),
    pytest.mark.filterwarnings("default"),  # what a machine's PyTorch and Triton announce is not tested here
]

OPTIONS: dict[str, Any] = {"hidden": (6,), "epochs": 10, "learning_rate": 0.01}


def train(**options: Any) -> FitResult:
    x = np.random.default_rng(0).uniform(0, 1, (600, 2))
    return fit(x, np.sin(4 * x[:, 0]) * x[:, 1], **{**OPTIONS, "device": "cuda", **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "lbfgs"},
        {"amp": True},
        {"compile": True},
        {"micro_batch": 7},
        {"hidden": (6, 6), "batch_norm": True},
        {"grid": (5, 10), "l1": 1e-4, "entropy": 1e-4},
    ],
    ids=str,
)
def test_it_learns_as_on_the_cpu(options: dict[str, Any]) -> None:
    there, here = train(**options), train(**{**options, "device": "cpu", "compile": False})
    assert there.score == pytest.approx(here.score, abs=0.02)
    assert {value.device.type for value in there.model.state_dict().values()} == {"cpu"}
    assert there.step_bytes > 0


@pytest.mark.parametrize("options", [{}, {"optimizer": "lbfgs"}, {"grid": (5, 10)}], ids=str)
def test_it_goes_on_where_it_was_interrupted(options: dict[str, Any], tmp_path: Path) -> None:
    def stop(epoch: Epoch) -> None:
        if epoch.number == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(**options, out=tmp_path / "m.pt", progress=stop)
    resumed = train(**options, out=tmp_path / "m.pt", resume=True)
    assert len(resumed.history) == 10
    assert resumed.score == pytest.approx(train(**options).score, abs=0.02)


def test_a_step_that_does_not_fit_is_told_and_fits_in_micro_batches() -> None:
    free, _ = torch.cuda.mem_get_info()
    rows = 2 * free // (1024 * 8 * 4)  # of which one basis alone takes twice the memory
    x = np.random.default_rng(0).random((rows * 5 // 4, 1), dtype=np.float32)
    options: dict[str, Any] = {"hidden": (1024,), "batch_size": rows, "epochs": 1, "device": "cuda"}
    with pytest.raises(InputError, match="a step does not fit the memory: choose a smaller micro_batch"):
        fit(x, x[:, 0], **options)
    torch.cuda.empty_cache()
    assert fit(x, x[:, 0], **options, micro_batch=rows // 64).step_bytes < free
