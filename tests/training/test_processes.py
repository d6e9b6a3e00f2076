"""Training in two processes of torchrun, beside one process on the same batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from relukan_deploy.checkpoint import load_checkpoint

TRAIN = "relukan_deploy.cli.train"
OPTIONS = ("--hidden", "6", "4", "--epochs", "3", "--device", "cpu")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).uniform(0, 1, (103, 2))
    np.savez("d.npz", x=x, y=np.sin(4 * x[:, 0]) * x[:, 1])


def train(processes: int, out: str, *options: str) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    program = f"import sys; from {TRAIN} import main; sys.exit(main())"
    Path("train.py").write_text(program, encoding="utf-8")
    command = [sys.executable, *launch, "train.py", "d.npz", "-o", out, *OPTIONS, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--batch-size", "23"), ("--optimizer", "lbfgs"), ("--batch-size", "24", "--micro-batch", "5", "--l1", "1e-3")],
)
def test_two_processes_give_what_one_gives(options: tuple[str, ...]) -> None:
    one, two = train(0, "one.pt", *options), train(2, "two.pt", *options)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    first, second = (load_checkpoint(f"{name}.pt").spec() for name in ("one", "two"))
    x = np.random.default_rng(1).uniform(0, 1, (200, 2))
    assert (
        np.abs(first.evaluate(x) - second.evaluate(x)).max() < 1e-3
    )  # of rounding, over the steps; another batch would change 0.1
    assert two.stderr.count("Wrote two.pt") == 1


@pytest.mark.slow
def test_a_batch_with_fewer_rows_than_processes_is_refused() -> None:
    result = train(2, "m.pt", "--batch-size", "1")
    assert result.returncode != 0
    assert "relukan-train: error: a step needs 2 rows, 1 for each process, and has 1: choose" in result.stderr


@pytest.mark.slow
def test_normalisations_over_several_cpus_are_refused() -> None:
    result = train(2, "m.pt", "--batch-norm")
    assert result.returncode != 0
    assert "relukan-train: error: batch_norm over several processes needs GPUs" in result.stderr
