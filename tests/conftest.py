"""Networks and bundles that many tests read. Nothing here needs torch, hypothesis or polars."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relukan_deploy.spec import KanSpec, LayerSpec

if importlib.util.find_spec("hypothesis"):  # a GPU machine may have none
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
    settings.load_profile("untimed")

MakeSpec = Callable[..., KanSpec]
Sign = Callable[[Path, dict[str, Any]], None]


def _layer(generator: np.random.Generator, inputs: int, outputs: int) -> LayerSpec:
    """A layer as training leaves it: uneven bumps, some at other places on other inputs, one crossed."""
    starts = np.linspace(-0.6, 0.8, 8) + generator.uniform(-0.05, 0.05, (inputs, 8))
    ends = starts + generator.uniform(0.6, 0.9, (inputs, 8))
    ends[0, 3] = starts[0, 3] - 0.1
    return LayerSpec(
        starts=starts,
        ends=ends,
        coefficients=generator.normal(0, 0.25 / np.sqrt(inputs), (outputs, inputs, 8)),
        bias=generator.uniform(0.2, 0.6, outputs),
    )


@pytest.fixture(scope="session")
def make_spec() -> MakeSpec:
    """``make_spec(widths, seed=0, **meaning)``: a network of these widths."""

    def make(widths: tuple[int, ...], seed: int = 0, **meaning: Any) -> KanSpec:
        generator = np.random.default_rng(seed)
        return KanSpec(tuple(_layer(generator, *pair) for pair in itertools.pairwise(widths)), **meaning)

    return make


@pytest.fixture(scope="session")
def spec(make_spec: MakeSpec) -> KanSpec:
    """A regression from three named inputs to two named targets."""
    return make_spec((3, 5, 2), columns=("width", "height", "depth"), targets=("mass", "cost"))


@pytest.fixture(scope="session")
def classifier(make_spec: MakeSpec) -> KanSpec:
    """A classification of four unnamed inputs into three kinds."""
    return make_spec((4, 6, 3), seed=1, task="classification", targets=("kind",), labels=("fern", "moss", "oak"))


@pytest.fixture(scope="session")
def bundle_path(spec: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a graph alone. Not to be written to."""
    from relukan_deploy.api import export

    return export(spec, tmp_path_factory.mktemp("graph") / "bundle").path


@pytest.fixture(scope="session")
def engine_bundle_path(spec: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a graph and a TensorRT-RTX engine. Not to be written to."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from relukan_deploy.api import export

    return export(spec, tmp_path_factory.mktemp("engine") / "bundle", trt=True, flavour="tensorrt-rtx").path


@pytest.fixture
def copied(bundle_path: Path, tmp_path: Path) -> Path:
    """The bundle with a graph alone, as a copy that may be changed."""
    return Path(shutil.copytree(bundle_path, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def sign() -> Sign:
    """``sign(folder, content)`` writes `content` as a manifest.json whose own hash is right."""

    def write(folder: Path, content: dict[str, Any]) -> None:
        zeros = "0" * 64
        text = json.dumps({**content, "manifest_sha256": zeros}).encode()
        (folder / "manifest.json").write_bytes(text.replace(zeros.encode(), hashlib.sha256(text).hexdigest().encode()))

    return write
