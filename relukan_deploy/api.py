"""`export` and `verify`: what `relukan-export` and `relukan-verify` do, as one call each."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from ._files import sha256
from ._tensorrt import Flavour
from .bundle import (
    ENGINE,
    GOLDEN,
    ONNX,
    Artifact,
    Bundle,
    Manifest,
    open_bundle,
    replacing_bundle,
    write_manifest,
)
from .errors import InputError, MissingDependencyError, MissingDeviceError, RelukanError
from .exporters.bfloat16 import emulate_in_float32
from .exporters.lowering import choose_form
from .exporters.to_onnx import count_operators, to_onnx
from .exporters.to_tensorrt import Engine, EngineOptions, build_engine
from .gpu import find_gpu
from .parity import STANDARD_BATCHES, TOLERANCES, ParityReport, compare, golden_inputs
from .runtime.load import BACKENDS, open_backend
from .spec import KanSpec, Layout, Precision

if TYPE_CHECKING:
    from .model import ReLUKAN
    from .runtime import Runner

__all__ = ["Check", "export", "verify"]

_MOST_DATA_ROWS = 4096  # of a user's table that are compared besides the golden inputs

Say = Callable[[str], None]
"""Called with what is being done now, in a few words."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One artifact on one backend of this machine.

    Attributes:
        artifact: what was to be checked.
        backend: what ran it, or would have.
        report: the comparison; None if it could not be made.
        reason: why not, or None.
    """

    artifact: Artifact
    backend: str
    report: ParityReport | None = None
    reason: str | None = None


def export(
    model: str | Path | ReLUKAN | KanSpec,
    out: str | Path | None = None,
    *,
    trt: bool = False,
    flavour: Flavour | None = None,
    precision: Precision = "fp32",
    layout: Layout = "batch-last",
    engine: EngineOptions | None = None,
    tolerance: float | None = None,
    data: str | Path | None = None,
    grid: int | None = None,
    order: int | None = None,
    say: Say = lambda doing: None,
) -> Bundle:
    """Writes a verified bundle, and opens it.

    Every artifact is read back from the disk and compared with the float64 reference. If one is
    out of tolerance nothing is written, and a bundle that was there before stays.

    Args:
        model: a checkpoint file, or a network.
        out: the bundle's folder; by default beside the checkpoint and named after it.
        trt: also build an engine.
        flavour: which TensorRT builds it; None takes `tensorrt` where it and a GPU are there,
            else `tensorrt-rtx`, which needs no GPU to build.
        precision: of every tensor. "tf32" is float32 with TF32 allowed in the engine.
        layout: "batch-last" is the fast one; "batch-major" has the batch on axis 0, as dynamic
            batchers need it.
        engine: how the engine is built. Its most frequent batch also decides the form of the
            graph; see exporters/lowering.py.
        tolerance: the largest error relative to max(1, max|y|); None for `TOLERANCES[precision]`.
        data: a table with the network's columns, to compare on as well. Its rows are not stored.
        grid, order: for a reference ReLU-KAN whose intervals were trained.
        say: told what is being done.

    Raises:
        InputError: the checkpoint, the data or an option cannot be used.
        ParityError: an artifact is out of tolerance.
        MissingDependencyError, MissingDeviceError: what was asked for cannot be built here.
        BuildError: TensorRT failed.
    """
    for name, value, choices in (("precision", precision, get_args(Precision)), ("layout", layout, get_args(Layout))):
        if value not in choices:
            raise InputError(f"{name} must be {', '.join(choices)}, got {value!r}")
    _check_tolerance(tolerance)
    if not trt and (precision == "tf32" or flavour):
        raise InputError(
            f"{'tf32' if precision == 'tf32' else flavour} is a matter of the engine: add trt=True (--trt)"
        )
    options = engine or EngineOptions()
    say("reading the network")
    spec, source, out = _read_network(model, out, grid, order)
    x = golden_inputs(spec)
    table = _data_rows(spec, data)

    say("writing the graph")
    made = [_make_graph(spec, layout, precision, tolerance, options.batch[1], trt)]
    if trt:
        say("building the engine")
        made.append(_make_engine(*made[0], spec, precision, tolerance, options, flavour, say))

    manifest = Manifest(
        widths=spec.widths,
        task=spec.task,
        columns=spec.columns,
        targets=spec.targets,
        labels=spec.labels,
        domain=tuple((low, high) if low < high else None for low, high in spec.domain.tolist()),
        artifacts=tuple(artifact for artifact, _ in made),
        source=source,
        versions=_versions(),
    )
    rows = np.concatenate([x, table])
    with replacing_bundle(out) as folder:
        for artifact, content in made:
            (folder / artifact.file).write_bytes(content)
        with (folder / GOLDEN).open("wb") as file:
            np.savez_compressed(file, x=x, y=spec.evaluate(x))
        write_manifest(folder, manifest)
        written, reference = open_bundle(folder), spec.evaluate(rows)
        verified = [
            _with_checks(artifact, _check(written, artifact, rows, reference, tolerance, say)) for artifact, _ in made
        ]
        write_manifest(folder, dataclasses.replace(manifest, artifacts=tuple(verified)))
    return open_bundle(out)


def verify(
    path: str | Path,
    *,
    tolerance: float | None = None,
    data: str | Path | None = None,
    checkpoint: str | Path | None = None,
    grid: int | None = None,
    order: int | None = None,
    say: Say = lambda doing: None,
) -> list[Check]:
    """Compares every artifact of a bundle with the float64 reference, on all this machine can run.

    Args:
        path: the bundle.
        tolerance: instead of the one each artifact was exported with.
        data: a table with the network's columns, to compare on as well; needs the checkpoint,
            since only that can tell the reference's answers to new rows.
        checkpoint: the file the bundle was exported from. The reference is then evaluated anew,
            instead of read from the bundle.
        grid, order: as for `export`.
        say: told what is being done.

    Returns:
        One `Check` for each artifact and backend. None of them is out of tolerance.

    Raises:
        BundleError: the bundle is damaged.
        InputError: the checkpoint is not the bundle's, or the data cannot be used.
        ParityError: an artifact is out of tolerance.
    """
    _check_tolerance(tolerance)
    if data is not None and checkpoint is None:
        raise InputError("comparing on data needs the checkpoint too: the bundle holds no float64 reference")
    bundle = open_bundle(path)
    x, y = bundle.golden()
    if checkpoint is not None:
        spec, source, _ = _read_network(checkpoint, Path(path), grid, order)
        if source["sha256"] != bundle.manifest.source.get("sha256"):
            raise InputError(f"{checkpoint} is not the checkpoint that {path} was exported from: its SHA-256 differs")
        x = np.concatenate([x, _data_rows(spec, data)])
        y = spec.evaluate(x)
    return [check for artifact in bundle.manifest.artifacts for check in _check(bundle, artifact, x, y, tolerance, say)]


def _check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not 0 < tolerance < np.inf:
        raise InputError(f"tolerance must be greater than 0, got {tolerance}")


def _make_graph(
    spec: KanSpec, layout: Layout, precision: Precision, tolerance: float | None, batch: int, engine: bool
) -> tuple[Artifact, bytes]:
    """model.onnx, in the form that is fastest at `batch` on what will run it."""
    form = choose_form(spec, layout=layout, precision=precision, batch=batch, engine=engine)
    stored: Precision = "fp32" if precision == "tf32" else precision
    graph = to_onnx(spec, layout=layout, form=form, precision=stored)
    artifact = Artifact(
        file=ONNX,
        kind="onnx",
        precision=stored,
        layout=layout,
        form=form,
        tolerance=tolerance or TOLERANCES[stored],
        details={"operators": count_operators(graph), "opset": 22 if precision == "bf16" else 13},
    )
    return artifact, graph


def _make_engine(
    source: Artifact,
    graph: bytes,
    spec: KanSpec,
    precision: Precision,
    tolerance: float | None,
    options: EngineOptions,
    flavour: Flavour | None,
    say: Say,
) -> tuple[Artifact, bytes]:
    """model.engine, built from model.onnx."""
    built = build_engine(
        graph,
        in_features=spec.in_features,
        layout=source.layout,
        precision=precision,
        options=options,
        flavour=flavour,
        progress=lambda phase, done, total: say(f"building the engine: {phase.lower()} {done}/{total}"),
    )
    artifact = Artifact(
        file=ENGINE,
        kind=built.flavour,
        precision=precision,
        layout=source.layout,
        form=source.form,
        tolerance=tolerance or TOLERANCES[precision],
        batch=options.batch,
        details=_engine_details(built, options),
    )
    return artifact, built.plan


def _check(
    bundle: Bundle,
    artifact: Artifact,
    x: NDArray[np.float32],
    y: NDArray[np.float64],
    tolerance: float | None,
    say: Say,
) -> list[Check]:
    """Compares one artifact on each backend for its kind."""
    checks = []
    gpu = find_gpu()
    limits = {size for other in bundle.manifest.artifacts for size in other.batch or ()}
    for backend, (kind, _) in BACKENDS.items():
        if kind != artifact.kind or (backend == "onnxruntime-cuda" and gpu is None):
            continue
        say(f"comparing {artifact.file} on {backend} with the float64 reference")
        try:
            runner, backend = _open(bundle, backend, artifact)
        except RelukanError as error:
            absent = artifact.kind != "onnx" and isinstance(error, (MissingDeviceError, MissingDependencyError))
            reason = "no GPU here to run it" if gpu is None and absent else str(error)
            checks.append(Check(artifact, backend, reason=reason))
            continue
        try:
            report = compare(
                runner,
                x,
                y,
                tolerance=tolerance or artifact.tolerance,
                task=bundle.manifest.task,
                batches=(*STANDARD_BATCHES, len(x), *limits),
            )
        finally:
            runner.close()
        report.require(f"{artifact.file} on {backend}")
        checks.append(Check(artifact, backend, report))
    return checks


def _open(bundle: Bundle, backend: str, artifact: Artifact) -> tuple[Runner, str]:
    """A runner, and its backend's name; a bf16 graph on a CPU is emulated, and says so."""
    if backend != "onnxruntime-cpu" or artifact.precision != "bf16":
        return open_backend(bundle, backend, artifact), backend
    from .runtime._session import SessionRunner, make_session

    # Optimising the graph would take out the very roundings it is there for.
    session = make_session(
        emulate_in_float32(bundle.contents[artifact.file]), ["CPUExecutionProvider"], threads=1, level="ORT_DISABLE_ALL"
    )
    name = "onnxruntime-cpu, float32 rounded to bf16"
    plain = dataclasses.replace(artifact, precision="fp32")
    return SessionRunner(name, session, plain, bundle.manifest.in_features, bundle.manifest.out_features), name


def _with_checks(artifact: Artifact, checks: list[Check]) -> Artifact:
    """The artifact with what its checks found: the worst backend's figures."""
    reports = [(check.report.error, check) for check in checks if check.report]
    if not reports:
        return dataclasses.replace(artifact, reason="; ".join(str(check.reason) for check in checks))
    worst = max(reports, key=lambda pair: pair[0])[1]
    assert worst.report is not None
    return dataclasses.replace(artifact, verified=True, parity={"backend": worst.backend, **worst.report.as_dict()})


def _read_network(
    model: str | Path | ReLUKAN | KanSpec, out: str | Path | None, grid: int | None, order: int | None
) -> tuple[KanSpec, dict[str, str], Path]:
    """The network, where it came from, and where its bundle goes."""
    if isinstance(model, (str, Path)):
        from .checkpoint import load_checkpoint

        path = Path(model)
        checkpoint = load_checkpoint(path, grid=grid, order=order)
        source = {"file": path.name, "sha256": sha256(path.read_bytes()), "kind": checkpoint.kind}
        out = Path(out) if out is not None else path.with_suffix("")
        if out == path:
            raise InputError(
                f"{path} has no suffix to take off, so the bundle needs a place of its own: give one with -o"
            )
        return checkpoint.spec(), source, out
    if out is None:
        raise InputError("out must name the bundle's folder when the network does not come from a file")
    spec = model if isinstance(model, KanSpec) else model.spec()
    return spec, {"kind": "in memory"}, Path(out)


def _data_rows(spec: KanSpec, data: str | Path | None) -> NDArray[np.float32]:
    if data is None:
        return np.empty((0, spec.in_features), np.float32)
    from .table import read_inputs

    return read_inputs(data, spec.columns, spec.in_features)[:_MOST_DATA_ROWS]


def _engine_details(engine: Engine, options: EngineOptions) -> dict[str, Any]:
    return {
        "version": engine.version,
        "gpu": engine.gpu.name if engine.gpu else None,
        "compute_capability": engine.gpu.compute_capability if engine.gpu else None,
        "cuda": engine.gpu.cuda if engine.gpu else None,
        "build_seconds": round(engine.build_seconds, 3),
        "workspace": options.workspace,
        "refittable": options.refittable,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("relukan-deploy", "numpy", "onnx", "onnxruntime", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
