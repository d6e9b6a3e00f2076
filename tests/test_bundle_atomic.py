"""Killed at any point, a write leaves the old one or the new one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relukan_deploy.bundle import open_bundle
from relukan_deploy.spec import KanSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2 and SIGKILL")

SCRIPT = Path(__file__).with_name("kill_points.py")

# Exports the two networks of `bundle` in turn until it is killed.
LOOP = """
import sys
from pathlib import Path
import numpy as np
from relukan_deploy.api import export
from relukan_deploy.spec import KanSpec, LayerSpec

def network(height):
    bump = LayerSpec(np.array([[0.0]]), np.array([[1.0]]), np.array([[[height]]]), np.zeros(1))
    return KanSpec((bump,))

turn = 0
while True:
    export(network(1.0 + turn % 2), Path(sys.argv[1]))
    turn += 1
    print(turn, flush=True)
"""


def kill_everywhere(kind: str, folder: Path, every: int = 1) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), kind, str(folder), str(every)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("kind", "every"),
    [
        pytest.param("manifest", 1, id="every call of writing a bundle"),
        pytest.param("export", 5, id="every fifth call of a whole export"),
        pytest.param("save", 1, id="every call of saving a checkpoint"),
        pytest.param("version", 1, id="every call of adding a version to Triton's repository"),
    ],
)
def test_killed_at_each_call_the_old_one_or_the_new_one_is_there(tmp_path: Path, kind: str, every: int) -> None:
    found = kill_everywhere(kind, tmp_path, every)
    assert found["wrong"] == []
    assert found["old"] > 10
    assert found["new"] > 3
    assert found["after"] == "new"  # temporary folders that were left behind are in nobody's way


@pytest.mark.slow
def test_killed_at_a_random_moment_the_bundle_opens(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    generator = random.Random(0)
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # one export is done
            time.sleep(generator.uniform(0, 0.3))
            process.kill()
        x, y = open_bundle(path).golden()
        assert any(np.array_equal(y, _bump(x, height)) for height in (1.0, 2.0))


def _bump(x: np.ndarray[Any, Any], height: float) -> np.ndarray[Any, Any]:
    """4·x·(1 − x), squared, between 0 and 1, in float64."""
    inside = np.clip(x.astype(np.float64), 0, 1)
    answer: np.ndarray[Any, Any] = height * (4.0 * (1 - inside) * inside) ** 2
    return answer


def test_a_later_export_goes_past_what_a_killed_one_left(spec: KanSpec, tmp_path: Path) -> None:
    from relukan_deploy.api import export

    left = tmp_path / ".bundle.abcdefgh"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    export(spec, tmp_path / "bundle")
    assert open_bundle(tmp_path / "bundle").manifest.widths == (3, 5, 2)
    assert (left / "model.onnx").read_bytes() == b"half"  # it could be another export, still running
