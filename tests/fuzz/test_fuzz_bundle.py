"""Ten thousand damaged manifests, graphs and golden files: each refused by name, or answered rightly."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import GROWTH, MUTATIONS, damaged, resident_bytes, rounds, with_another_value

from relukan_deploy.bundle import open_bundle
from relukan_deploy.errors import BundleError, RelukanError
from relukan_deploy.runtime import load
from relukan_deploy.spec import KanSpec

pytestmark = pytest.mark.slow

Sign = Callable[[Path, dict[str, Any]], None]


def test_a_manifest_with_damaged_bytes_is_refused_by_name(copied: Path) -> None:
    raw = (copied / "manifest.json").read_bytes()
    for chance in rounds(1):
        changed = damaged(raw, chance)
        (copied / "manifest.json").write_bytes(changed)
        if changed != raw:
            with pytest.raises(BundleError, match=r"manifest\.json"):
                open_bundle(copied)


def test_a_manifest_with_another_value_under_a_right_hash_is_refused_or_answers_rightly(
    copied: Path, spec: KanSpec, sign: Sign
) -> None:
    content = json.loads((copied / "manifest.json").read_bytes())
    del content["manifest_sha256"]
    x, _ = open_bundle(copied).golden()
    answered = 0
    for chance in rounds(2):
        sign(copied, with_another_value(content, chance))
        try:
            y = load(copied, backend="onnxruntime-cpu")(x)
        except RelukanError:
            continue
        answered += 1
        np.testing.assert_allclose(y, spec.evaluate(x), rtol=0, atol=1e-4)
    assert answered > 100  # of the values that only people read


def with_right_hashes(folder: Path, content: dict[str, Any], name: str, data: bytes, sign: Sign) -> None:
    (folder / name).write_bytes(data)
    content["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    sign(folder, content)


def test_golden_inputs_that_are_damaged_under_a_right_hash_are_refused(copied: Path, sign: Sign) -> None:
    content = json.loads((copied / "manifest.json").read_bytes())
    del content["manifest_sha256"]
    raw = (copied / "golden.npz").read_bytes()
    for chance in rounds(3):
        with_right_hashes(copied, content, "golden.npz", damaged(raw, chance), sign)
        try:
            x, y = open_bundle(copied).golden()
        except RelukanError:
            continue
        assert (x.shape[1], y.shape[1], len(x)) == (3, 2, len(y))


def test_golden_inputs_that_unpack_to_gigabytes_are_not_unpacked(copied: Path, sign: Sign) -> None:
    content = json.loads((copied / "manifest.json").read_bytes())
    del content["manifest_sha256"]
    np.savez_compressed(copied / "bomb.npz", x=np.zeros((1 << 28, 1), np.float32), y=np.zeros((1, 1)))
    with_right_hashes(copied, content, "golden.npz", (copied / "bomb.npz").read_bytes(), sign)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read: it unpacks to 1073742\d+ bytes"):
        open_bundle(copied).golden()


ASK = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path({here!r})))
import test_fuzz_bundle
test_fuzz_bundle.ask_damaged_graphs(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


def ask_damaged_graphs(folder: Path, begin: int, end: int) -> None:
    """Loads a bundle with a graph damaged under a right hash, again and again. Run in a process of its own."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    content = json.loads((folder / "manifest.json").read_bytes())
    del content["manifest_sha256"]
    raw = (folder / "model.onnx").read_bytes()
    bundle = open_bundle(folder)
    x, y = bundle.golden()
    before = 0
    for index in range(begin, end):
        if index == (begin + end) // 2:
            before = resident_bytes()
        (folder / "at").write_text(str(index))
        data = damaged(raw, random.Random(index))
        content["files"]["model.onnx"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (folder / "model.onnx").write_bytes(data)
        zeros = "0" * 64
        text = json.dumps({**content, "manifest_sha256": zeros}).encode()
        digest = hashlib.sha256(text).hexdigest()
        (folder / "manifest.json").write_bytes(text.replace(zeros.encode(), digest.encode()))
        try:
            answer = load(folder, backend="onnxruntime-cpu")(x)
        except RelukanError:
            continue
        assert np.abs(answer - y).max() < 1e-4, index
    assert resident_bytes() - before < GROWTH


def test_a_graph_that_is_damaged_under_a_right_hash_is_refused_or_answers_rightly(copied: Path, tmp_path: Path) -> None:
    for begin in range(0, MUTATIONS, MUTATIONS // 4):
        folder = Path(shutil.copytree(copied, tmp_path / str(begin)))
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                ASK.format(here=str(Path(__file__).parent)),
                str(folder),
                str(begin),
                str(begin + MUTATIONS // 4),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, f"mutation {(folder / 'at').read_text()}: {done.returncode}\n{done.stderr[-2000:]}"
