"""A bundle's backends as subjects.

host     what a caller waits for: `Runner`'s call with its checks, layout, and copies to a GPU and back
bound    ONNX Runtime on a CPU: the graph alone, its buffers bound, one binding for each rotated input
device   TensorRT: enqueuing a batch that is on the GPU already, and waiting for it
"""

from __future__ import annotations

import dataclasses
import functools
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..._tensorrt import Flavour
from ...bundle import Artifact, Bundle
from ...errors import InputError
from ...runtime._engine import EngineBackend
from ...runtime._session import SessionBackend, make_session
from ...runtime.guard import Guard
from ...runtime.load import BACKENDS, check_golden, open_backend
from ...runtime.ort_cpu import level_for, widest_layer
from ...runtime.runner import Backend, Runner
from ..limits import layers_of
from ..results import OURS, Contender
from . import Shape, Subject
from .device import engine_subjects
from .host import Bound, Call, Host

__all__ = ["artifact_for", "bundle_subjects", "engine_subjects", "parameters_of", "shape_of"]

_ORDER = 3  # of bumps, as the paper has it
_TEMPORARIES = 3  # of a layer's basis, that ONNX Runtime holds at a time


def bundle_subjects(bundle: Bundle, backend: str, *, threads: int) -> list[Subject]:
    """Every way to run a bundle on a backend, which has just answered the golden inputs correctly.

    Args:
        backend: in `relukan_deploy.runtime.BACKENDS`.
        threads: of ONNX Runtime on a CPU.

    Raises:
        InputError: the bundle has nothing for the backend, or the backend cannot run its precision.
        ParityError: the golden inputs are answered wrongly.
        MissingDependencyError, MissingDeviceError, BundleError: it cannot run here.
    """
    manifest, artifact = bundle.manifest, artifact_for(bundle, backend)
    base = Contender(OURS, manifest.widths, backend, artifact.precision, artifact.layout)
    domain, parameters = _domain(bundle), parameters_of(bundle)
    running = open_backend(bundle, backend, artifact, threads)
    try:
        difference = check_golden(bundle, artifact, running).error
    except BaseException:
        running.close()
        raise

    def guarded(answering: Backend) -> Call:
        return Runner(answering, bundle, artifact, Guard(manifest, "count", "count"))

    if isinstance(running, EngineBackend):
        flavour, plan = cast(Flavour, backend), bundle.contents[artifact.file]
        opened = functools.partial(EngineBackend, flavour, plan, artifact, manifest.in_features, manifest.out_features)
        return engine_subjects(
            base,
            lambda graphs: running if graphs else opened(graphs=False),
            domain,
            parameters=parameters,
            difference=difference,
            call=guarded,
        )
    chunk = running.chunk if isinstance(running, SessionBackend) else None
    basis = _TEMPORARIES * 4 * widest_layer(artifact)  # bytes for a row
    host = Host(
        base,
        parameters,
        difference,
        domain,
        call=guarded(running),
        taken=lambda batch: basis * min(batch, chunk or batch),
    )
    if backend != "onnxruntime-cpu":
        return [host]
    level = level_for(artifact.form)
    session = make_session(bundle.contents[artifact.file], ["CPUExecutionProvider"], threads, level=level)
    bound = dataclasses.replace(base, data="bound")
    return [host, Bound(bound, parameters, difference, domain, session=session, basis=basis)]


def artifact_for(bundle: Bundle, backend: str) -> Artifact:
    """What a backend runs of a bundle. Raises InputError where there is nothing."""
    kind = BACKENDS[backend][0]
    for artifact in bundle.manifest.artifacts:
        if artifact.kind == kind:
            return artifact
    raise InputError(f"{bundle.path} has no {kind} artifact for the backend {backend}")


def parameters_of(bundle: Bundle) -> int:
    """The numbers that the network has learnt: coefficients, biases, s and e of each bump that it kept, or knots."""
    return sum(layer.parameters for layer in layers_of(bundle))


def shape_of(bundle: Bundle, grid: int | None = None, order: int | None = None) -> Shape:
    """What peers of the same size are built from: as many basis functions on each input as the bundle has.

    Args:
        grid: of the network; None takes what the order leaves of the basis functions.
        order: of the network. None takes the degree of its splines; bumps do not tell, for them it is 3.

    Raises:
        InputError: grid and order do not make as many basis functions, or are not those of the splines.
    """
    degree = max((layer.degree for layer in bundle.manifest.splines), default=None)
    basis = max(-(-layer.basis // layer.inputs) for layer in layers_of(bundle))
    if order is None:
        order = _ORDER if degree is None else degree
    given = basis - order if grid is None else grid
    if degree not in (None, order) or order < 0 or given < 1 or given + order != basis:
        kind = "bumps" if degree is None else f"splines of order {degree}"
        raise InputError(
            f"{bundle.path} has {basis} {kind} on each input, which are grid + order: "
            f"got --grid {'not given' if grid is None else grid} --order {order}"
        )
    return Shape(bundle.manifest.widths, given, order, _domain(bundle))


def _domain(bundle: Bundle) -> NDArray[np.float64]:
    """``(in, 2)``, with [0, 1] for an input that never matters."""
    return np.array([interval or (0.0, 1.0) for interval in bundle.manifest.domain])
