"""`load`: the best backend that a bundle and this machine have in common."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Literal

from ..bundle import Artifact, ArtifactKind, Bundle, open_bundle
from ..errors import BundleError, InputError, ParityError, RelukanError
from ..parity import ParityReport
from .guard import Guard, Nonfinite, OutOfDomain
from .runner import Backend, Runner, check_answers

__all__ = ["BACKENDS", "check_golden", "load", "open_backend"]

Threads = int | Literal["auto"]

logger = logging.getLogger("relukan_deploy.runtime")

BACKENDS: dict[str, tuple[ArtifactKind, str]] = {
    "tensorrt": ("tensorrt", "trt"),
    "tensorrt-rtx": ("tensorrt-rtx", "trt_rtx"),
    "onnxruntime-cuda": ("onnx", "ort_cuda"),
    "onnxruntime-cpu": ("onnx", "ort_cpu"),
}
"""For each backend, in the order in which they are tried: the kind of artifact it runs, and its module."""


def load(
    path: str | Path | Bundle,
    *,
    backend: str = "auto",
    threads: Threads = 1,
    out_of_domain: OutOfDomain = "count",
    nonfinite: Nonfinite = "count",
) -> Runner:
    """Opens a bundle and gives a runner that has just answered its golden inputs correctly.

    Args:
        path: the bundle, or one that is open already.
        backend: one of `BACKENDS`, or "auto" for the first of them that the bundle has an artifact
            for and this machine can run. What is passed over is logged, with the reason.
        threads: of ONNX Runtime on a CPU; "auto" tries 1, 2, 4, … here and takes the fastest.
        out_of_domain: what a value outside the domain leads to, of which the network has learnt nothing.
            "count" counts it in `Runner.stats`; "warn" also logs a warning, the first time for an
            input and each time its count is ten times as high; "raise" refuses the call; "clip" moves
            the value to the edge of the domain.
        nonfinite: what NaN or infinity leads to: "count", or "raise" to refuse the call.

    Raises:
        BundleError: the bundle is damaged, or no backend can run it here.
        ParityError: the golden inputs are answered wrongly on this machine.
        MissingDependencyError, MissingDeviceError: the backend that was asked for cannot run here.
        InputError: there is no such backend, policy or number of threads, or the bundle has nothing for it.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise InputError(f"backend must be auto, {', '.join(BACKENDS)}, got {backend!r}")
    if threads != "auto" and (not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads must be 'auto' or at least 1, got {threads!r}")
    bundle = open_bundle(path)
    path = bundle.path
    guard = Guard(bundle.manifest, out_of_domain, nonfinite)
    artifacts = {artifact.kind: artifact for artifact in bundle.manifest.artifacts}
    if backend != "auto":
        kind = BACKENDS[backend][0]
        if kind not in artifacts:
            raise InputError(f"{path} has no {kind} artifact for the backend {backend}, only {', '.join(artifacts)}")
        return _checked(bundle, backend, artifacts[kind], threads, guard)
    passed_over = []
    for name, (kind, _) in BACKENDS.items():
        if kind not in artifacts:
            continue
        try:
            runner = _checked(bundle, name, artifacts[kind], threads, guard)
        except ParityError:
            raise  # a wrong answer is refused, never worked around by another backend
        except RelukanError as error:
            passed_over.append(f"{name}: {error}")
            # Whoever exported an engine expects it to run. A CPU-only ONNX Runtime surprises nobody.
            level = logging.WARNING if kind != "onnx" else logging.DEBUG
            logger.log(level, "%s: %s is not used: %s", path, name, error)
            continue
        logger.info("%s: running on %s", path, name)
        return runner
    raise BundleError(f"no backend can run {path} here:\n  " + "\n  ".join(passed_over))


def open_backend(bundle: Bundle, backend: str, artifact: Artifact, threads: Threads = 1) -> Backend:
    """What runs one artifact of an opened bundle, without asking it anything."""
    module = importlib.import_module(f".{BACKENDS[backend][1]}", __package__)
    manifest = bundle.manifest
    opened: Backend = module.open_backend(
        bundle.contents[artifact.file], artifact, manifest.in_features, manifest.out_features, threads=threads
    )
    return opened


def check_golden(bundle: Bundle, artifact: Artifact, backend: Backend) -> ParityReport:
    """Compares a backend's answers to the golden inputs with the bundle's.

    Raises:
        ParityError: they are out of tolerance.
    """
    x, y = bundle.golden()
    report = check_answers(backend, artifact, x, y, domain=bundle.manifest.domain, task=bundle.manifest.task)
    report.require(f"{bundle.path / artifact.file} on {backend.name}")
    return report


def _checked(bundle: Bundle, name: str, artifact: Artifact, threads: Threads, guard: Guard) -> Runner:
    backend = open_backend(bundle, name, artifact, threads)
    try:
        check_golden(bundle, artifact, backend)
    except ParityError as error:
        backend.close()
        checkpoint = bundle.manifest.source.get("file", "CHECKPOINT")
        raise ParityError(
            f"{error}. Export it for this machine: relukan-export {checkpoint} -o {bundle.path}"
        ) from error
    except BaseException:
        backend.close()
        raise
    return Runner(backend, bundle, artifact, guard)
