"""Opening what was asked for: what cannot be run is skipped, with the reason."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from networks import spline_network

from relukan_deploy.api import export
from relukan_deploy.bench.request import Request, open_here
from relukan_deploy.bundle import open_bundle, write_manifest
from relukan_deploy.errors import BundleError
from relukan_deploy.gpu import find_gpu

INSTALL = "which is not installed. Install it with: pip install 'relukan-deploy[bench]'"


def test_a_backend_is_opened_in_every_way_it_has(bundle_path: Path) -> None:
    opened = open_here(Request(str(bundle_path), backends=("onnxruntime-cpu",), threads=2))
    assert [(each.contender.network, each.contender.engine) for each in opened.subjects] == [
        ("this network", "onnxruntime-cpu")
    ] * 2
    assert [each.contender.data for each in opened.subjects] == ["host", "bound"]
    assert opened.skipped == []
    assert opened.environment.threads == 2
    opened.close()


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_backends_that_cannot_run_here_are_skipped(engine_bundle_path: Path) -> None:
    opened = open_here(Request(str(engine_bundle_path), backends=("tensorrt-rtx", "onnxruntime-cpu")))
    assert {each.contender.engine for each in opened.subjects} == {"onnxruntime-cpu"}
    (skipped,) = opened.skipped
    assert skipped.what == "this network: tensorrt-rtx"
    assert "needs an NVIDIA GPU" in skipped.why or "runs on an NVIDIA GPU" in skipped.why
    opened.close()


def test_one_that_answers_wrongly_is_skipped_and_never_timed(copied: Path) -> None:
    bundle = open_bundle(copied)
    x, y = bundle.golden()
    np.savez(copied / "golden.npz", x=x, y=y + 1e-2)
    write_manifest(copied, bundle.manifest)
    opened = open_here(Request(str(copied), backends=("onnxruntime-cpu",)))
    assert list(opened.subjects) == []
    assert "differs from the float64 reference by 0.0" in opened.skipped[0].why


def test_peers_are_opened_beside_our_own_network_in_pytorch(bundle_path: Path) -> None:
    pytest.importorskip("torch")
    opened = open_here(Request(str(bundle_path), peers=("mlp",), engines=("torch",), order=4))
    networks = [each.contender.network for each in opened.subjects]
    assert networks == ["this network", "mlp, same widths", "mlp, same parameters"]
    assert {each.contender.engine for each in opened.subjects} == {"torch"}
    opened.close()


def test_splines_are_not_said_to_run_in_pytorch_as_a_network_of_ours(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    bundle = export(spline_network(0, [3, 5, 2]), tmp_path / "bundle")
    opened = open_here(Request(str(bundle.path), ("onnxruntime-cpu",), ("efficient-kan",), ("torch",)))
    assert [(each.contender.network, each.contender.engine) for each in opened.subjects] == [
        *[("this network", "onnxruntime-cpu")] * 2,
        ("efficient-kan", "torch"),
    ]
    opened.close()


def test_without_torch_peers_are_skipped_with_the_line_that_installs_it(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    request = Request(str(bundle_path), ("onnxruntime-cpu",), ("pykan", "mlp"), ("torch", "onnxruntime-cpu"))
    opened = open_here(request)
    assert len(opened.subjects) == 2
    (skipped,) = opened.skipped
    assert skipped.what == "pykan, mlp"
    assert skipped.why.endswith(INSTALL)
    opened.close()


def test_a_shape_that_peers_cannot_have_skips_them(bundle_path: Path) -> None:
    opened = open_here(Request(str(bundle_path), ("onnxruntime-cpu",), ("mlp",), ("torch",), order=20))
    assert len(opened.subjects) == 2
    assert [each.what for each in opened.skipped] == ["mlp"]
    assert "bumps on each input, which are grid + order" in opened.skipped[0].why
    opened.close()


def test_no_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        open_here(Request(str(tmp_path)))
