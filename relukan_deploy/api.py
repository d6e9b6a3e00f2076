"""`export` and `verify`: what `relukan-export` and `relukan-verify` do, as one call each."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from ._files import sha256
from ._recipe import Made, Recipe, Say, choose
from ._tensorrt import Flavour
from .approximation import approximations
from .bundle import (
    GOLDEN,
    Artifact,
    Bundle,
    Manifest,
    SplineShape,
    open_bundle,
    replacing_bundle,
    write_manifest,
)
from .errors import BundleError, InputError, MissingDependencyError, MissingDeviceError, ParityError
from .exporters.rounding import emulate_in_float32
from .exporters.to_tensorrt import EngineOptions
from .gpu import find_gpu
from .lowering import engine_form
from .parity import STANDARD_BATCHES, ParityReport, compare, golden_inputs
from .runtime._session import SessionBackend, make_session
from .runtime.load import BACKENDS, open_backend
from .spec import KanSpec, Layout, Precision
from .splines import SplineSpec

if TYPE_CHECKING:
    from .checkpoint import Source
    from .model import ReLUKAN
    from .runtime.runner import Backend
    from .train import FitResult

__all__ = ["Check", "default_place", "export", "verify"]

_MOST_DATA_ROWS = 4096  # of a user's table that are compared besides the golden inputs
_MOST_ONNX_ROWS = 4096  # in one batch, when a graph is compared at the limits of its engine


@dataclasses.dataclass(frozen=True)
class Check:
    """One artifact on one backend of this machine.

    Attributes:
        artifact: what was to be checked.
        backend: what ran it, or would have.
        report: the comparison; None if it could not be made.
        reason: why not, or None.
        binding: whether it has to be within the tolerance; False for an estimate.
    """

    artifact: Artifact
    backend: str
    report: ParityReport | None = None
    reason: str | None = None
    binding: bool = True


def export(
    model: str | Path | ReLUKAN | FitResult | KanSpec,
    out: str | Path | None = None,
    *,
    trt: bool = False,
    flavour: Flavour | None = None,
    precision: Precision = "fp32",
    layout: Layout = "batch-last",
    engine: EngineOptions | None = None,
    tolerance: float | None = None,
    data: str | Path | None = None,
    strict_ops: bool = False,
    approximate: bool = False,
    bound: float = 1e-6,
    source: Source | None = None,
    grid: int | None = None,
    order: int | None = None,
    mult_arity: int | None = None,
    say: Say = lambda doing: None,
) -> Bundle:
    """Writes a verified bundle, and opens it.

    Every artifact is read back from the disk and compared with the float64 reference. If one is
    out of tolerance nothing is written, and a bundle that was there before stays.

    Args:
        model: a checkpoint file, or a network: a `ReLUKAN`, a `KanSpec`, or what `fit` gave.
        out: the bundle's folder; by default beside the checkpoint and named after it.
        trt: also build an engine.
        flavour: which TensorRT builds it; None takes `tensorrt` where it and a GPU are there,
            else `tensorrt-rtx`, which needs no GPU to build.
        precision: of every tensor. "tf32" is float32 with TF32 allowed in the engine.
        layout: "batch-last" is the fast one; "batch-major" has the batch on axis 0, as dynamic
            batchers need it.
        engine: how the engine is built. Its most frequent batch also decides the form of
            model.onnx; see `lowering`.
        tolerance: the largest error relative to max(1, max|y|); None for `TOLERANCES[precision]`.
        data: a table with the network's columns; its first 4096 rows are compared as well, and not
            stored.
        strict_ops: write SiLU branches as piecewise polynomials. Without it, a graph of a network
            that has some holds Sigmoid as a fifth operator.
        approximate: write edges that compute sin, exp and the like as piecewise polynomials. Without
            it a network that has some is refused.
        bound: the largest error of each such SiLU, for all real numbers, and of each such edge,
            absolute. Where the answers would not be within the tolerance, a tenth or a hundredth of it.
        source, grid, order, mult_arity: as for `load_checkpoint`.
        say: told what is being done.

    Raises:
        InputError: the checkpoint, the data or an option cannot be used, or the bound cannot be reached.
        ParityError: an artifact is out of tolerance.
        MissingDependencyError, MissingDeviceError: what was asked for cannot be built here.
        BuildError: TensorRT failed.
    """
    for name, value, choices in (("precision", precision, get_args(Precision)), ("layout", layout, get_args(Layout))):
        if value not in choices:
            raise InputError(f"{name} must be {', '.join(choices)}, got {value!r}")
    _check_tolerance(tolerance)
    if not 0 < bound < np.inf:
        raise InputError(f"bound must be greater than 0, got {bound}")
    if not trt and (precision == "tf32" or flavour):
        raise InputError(
            f"{'tf32' if precision == 'tf32' else flavour} is a matter of the engine: add trt=True (--trt)"
        )
    options = engine or EngineOptions()
    say("reading the network")
    spec, origin, out = _read_network(model, out, source=source, grid=grid, order=order, mult_arity=mult_arity)
    if not approximate:
        _refuse_functions(spec)
    x = golden_inputs(spec, precision=precision)
    rows = np.concatenate([x, _data_rows(spec, data)])
    reference = spec.evaluate(rows)

    say("writing the graph")
    wanted = Recipe(spec, layout, precision, tolerance, strict=strict_ops, bound=bound)
    recipe, form, graph = choose(wanted, batch=options.batch[1], x=rows, reference=reference)
    manifest = Manifest(
        widths=spec.widths,
        task=spec.task,
        columns=spec.columns,
        targets=spec.targets,
        labels=spec.labels,
        domain=spec.intervals,
        artifacts=(),
        source=origin,
        version=_next_version(out),
        versions=_versions(),
        approximations=approximations(spec, strict=strict_ops, bound=recipe.bound),
        splines=tuple(_shape_of(layer) for layer in spec.layers if isinstance(layer, SplineSpec)),
    )
    made = [graph]
    if trt:
        say("building the engine")
        made.append(recipe.engine(engine_form(form), options, flavour, say))
    return _write(out, manifest, made, rows, reference, len(x), tolerance, say)


def _shape_of(layer: SplineSpec) -> SplineShape:
    sums, _, basis = layer.coefficients.shape
    return SplineShape(layer.degree, basis, sums, branches=int(layer.silu.any()) + layer.polynomial.shape[2])


def _write(
    out: Path,
    manifest: Manifest,
    made: list[Made],
    rows: NDArray[np.float32],
    reference: NDArray[np.float64],
    golden: int,
    tolerance: float | None,
    say: Say,
) -> Bundle:
    """Writes the bundle, reads it back, compares every artifact, and puts it in its place.

    All rows are compared; the first `golden` of them stay in the bundle.
    """
    artifacts = tuple(artifact for artifact, _ in made)
    with replacing_bundle(out) as folder:
        for artifact, content in made:
            (folder / artifact.file).write_bytes(content)
        with (folder / GOLDEN).open("wb") as file:
            np.savez_compressed(file, x=rows[:golden], y=reference[:golden])
        write_manifest(folder, dataclasses.replace(manifest, artifacts=artifacts))
        written = open_bundle(folder)
        checks = [_check(written, artifact, rows, reference, tolerance, say) for artifact in artifacts]
        _require([check for each in checks for check in each], manifest)
        verified = tuple(map(_with_checks, artifacts, checks))
        write_manifest(folder, dataclasses.replace(manifest, artifacts=verified))
    return open_bundle(out)


def verify(
    path: str | Path | Bundle,
    *,
    tolerance: float | None = None,
    data: str | Path | None = None,
    checkpoint: str | Path | None = None,
    source: Source | None = None,
    grid: int | None = None,
    order: int | None = None,
    mult_arity: int | None = None,
    say: Say = lambda doing: None,
) -> list[Check]:
    """Compares every artifact of a bundle with the float64 reference, on all this machine can run.

    Args:
        path: the bundle, or one that is open already.
        tolerance: instead of the one each artifact was exported with.
        data: a table with the network's columns, to compare on as well; needs the checkpoint,
            since only that can tell the reference's answers to new rows.
        checkpoint: the file the bundle was exported from. The reference is then evaluated anew,
            instead of read from the bundle.
        source, grid, order, mult_arity: as for `load_checkpoint`.
        say: told what is being done.

    Returns:
        One `Check` for each artifact and backend. None that is binding is out of tolerance.

    Raises:
        BundleError: the bundle is damaged.
        InputError: the checkpoint is not the bundle's, or the data cannot be used.
        ParityError: an artifact is out of tolerance; its `checks` are all that was compared.
    """
    _check_tolerance(tolerance)
    if data is not None and checkpoint is None:
        raise InputError("comparing on data needs the checkpoint too: the bundle holds no float64 reference")
    bundle = open_bundle(path)
    x, y = bundle.golden()
    if checkpoint is not None:
        spec, origin, _ = _read_network(
            checkpoint, bundle.path, source=source, grid=grid, order=order, mult_arity=mult_arity
        )
        if origin["sha256"] != bundle.manifest.source.get("sha256"):
            raise InputError(
                f"{checkpoint} is not the checkpoint that {bundle.path} was exported from: its SHA-256 differs"
            )
        x = np.concatenate([x, _data_rows(spec, data)])
        y = spec.evaluate(x)
    checks = [
        check for artifact in bundle.manifest.artifacts for check in _check(bundle, artifact, x, y, tolerance, say)
    ]
    _require(checks, bundle.manifest)
    return checks


def _check_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not 0 < tolerance < np.inf:
        raise InputError(f"tolerance must be greater than 0, got {tolerance}")


def _check(
    bundle: Bundle,
    artifact: Artifact,
    x: NDArray[np.float32],
    y: NDArray[np.float64],
    tolerance: float | None,
    say: Say,
) -> list[Check]:
    """Compares one artifact in every way this machine can run it."""
    limits = {size for other in bundle.manifest.artifacts for size in other.batch or ()}
    if artifact.kind == "onnx":  # has no limits of its own, and should not need their memory
        limits = {size for size in limits if size <= _MOST_ONNX_ROWS}
    checks = []
    for backend, opened, binding in _ways_to_run(bundle, artifact):
        say(f"comparing {artifact.file} on {backend} with the float64 reference")
        try:
            running = opened()
        except (MissingDependencyError, MissingDeviceError) as error:
            no_gpu = artifact.kind != "onnx" and find_gpu() is None
            checks.append(Check(artifact, backend, reason="no GPU here to run it" if no_gpu else str(error)))
            continue
        except BundleError as error:
            # Two that may not suit the GPU that happens to be here, with nothing wrong with them.
            if backend not in ("tensorrt-rtx", "onnxruntime-cuda"):
                raise
            checks.append(Check(artifact, backend, reason=str(error)))
            continue
        try:
            report = compare(
                running.run,
                x,
                y,
                domain=bundle.manifest.domain,
                tolerance=tolerance or artifact.tolerance,
                task=bundle.manifest.task,
                batches=(*STANDARD_BATCHES, len(x), *limits),
            )
        finally:
            running.close()
        checks.append(Check(artifact, backend, report, binding=binding))
    return checks


def _require(checks: list[Check], manifest: Manifest) -> None:
    """Raises ParityError for the first check that is out of tolerance, and not only an estimate."""
    within = ", ".join(f"{each.function} within {each.bound:g}" for each in manifest.approximations)
    approximating = f", which computes {within} (--bound)," if within else ""
    for check in checks:
        if check.binding and check.report:
            try:
                check.report.require(f"{check.artifact.file} on {check.backend}{approximating}")
            except ParityError as error:
                error.checks = checks
                raise


def _ways_to_run(bundle: Bundle, artifact: Artifact) -> Iterator[tuple[str, Callable[[], Backend], bool]]:
    """The backends for an artifact, how to open each, and whether it has to be within the tolerance.

    A half-precision graph is also run with its rounding emulated. For bf16 there is nothing else on
    a CPU. For fp16 it tells what an engine will do, where ONNX Runtime computes in float32.
    """
    for backend, (kind, _) in BACKENDS.items():
        if kind != artifact.kind or (backend == "onnxruntime-cuda" and find_gpu() is None):
            continue
        half = backend == "onnxruntime-cpu" and artifact.precision in ("fp16", "bf16")
        if not half or artifact.precision == "fp16":
            yield backend, functools.partial(open_backend, bundle, backend, artifact), True
        if half:
            name = f"{backend}, rounding to {artifact.precision}"
            yield name, functools.partial(_open_emulated, bundle, name, artifact), artifact.precision == "bf16"


def _open_emulated(bundle: Bundle, name: str, artifact: Artifact) -> Backend:
    def make(model: bytes) -> Any:  # optimised, the graph would lose the very roundings it is there for
        return make_session(model, ["CPUExecutionProvider"], threads=1, level="ORT_DISABLE_ALL")

    model = emulate_in_float32(bundle.contents[artifact.file])
    plain = dataclasses.replace(artifact, precision="fp32")
    return SessionBackend(name, make, model, plain, bundle.manifest.out_features)


def _with_checks(artifact: Artifact, checks: list[Check]) -> Artifact:
    """The artifact with what its checks found: the worst backend's figures, and the estimate if there is one."""
    found = [(check.report, check) for check in checks if check.report]
    details = dict(artifact.details)
    for report, check in found:
        if not check.binding:
            details["rounded_error"] = report.error
    binding = [(report, check.backend) for report, check in found if check.binding]
    if not binding:
        reason = "; ".join(str(check.reason) for check in checks if check.binding)
        return dataclasses.replace(artifact, reason=reason, details=details)
    worst, backend = max(binding, key=lambda pair: pair[0].error)
    return dataclasses.replace(artifact, verified=True, parity={"backend": backend, **worst.as_dict()}, details=details)


def default_place(model: Path) -> Path:
    """Where the bundle of a checkpoint file goes: beside it, and named after it.

    For what pykan's saveckpt wrote as `mark_state` and others that is `mark`, beside the folder where
    the folder was given.

    Raises:
        InputError: that is the checkpoint itself, or its folder.
    """
    from .importers.pykan import read_saved

    saved = read_saved(model)
    file = saved[0] if saved else model
    name = file.name.removesuffix("_state") or file.name
    place = file.with_name(name) if name != file.name else file.with_suffix("")
    if saved and model.is_dir() and file.parent == model:
        place = model.resolve().parent / name
    if place.resolve() in (file.resolve(), file.resolve().parent):
        what = "is named as its bundle would be" if model.is_dir() else "has no suffix to take off"
        raise InputError(f"{model} {what}, so the bundle needs a place of its own: give one with -o")
    return place


def _read_network(
    model: str | Path | ReLUKAN | FitResult | KanSpec, out: str | Path | None, **reading: Any
) -> tuple[KanSpec, dict[str, str], Path]:
    """The network, where it came from, and where its bundle goes."""
    if isinstance(model, (str, Path)):
        from .checkpoint import load_checkpoint

        path = Path(model)
        checkpoint = load_checkpoint(path, **reading)
        file = checkpoint.file
        source = {"file": file.name, "sha256": sha256(file.read_bytes()), "kind": checkpoint.kind}
        if out is not None and Path(out).resolve() == file.resolve():
            raise InputError(f"{out} is the checkpoint itself: choose another place with -o")
        return checkpoint.spec(), source, Path(out) if out is not None else default_place(path)
    if not isinstance(model, KanSpec) and not hasattr(model, "spec"):
        raise InputError(f"model must be a checkpoint file or a network, got {type(model).__name__}")
    if out is None:
        raise InputError("out must name the bundle's folder when the network does not come from a file")
    spec = model if isinstance(model, KanSpec) else model.spec()
    return spec, {"kind": "in memory"}, Path(out)


def _next_version(out: Path) -> int:
    """One more than that of the bundle which is to be replaced."""
    try:
        return open_bundle(out).manifest.version + 1
    except BundleError:  # none yet, or a damaged one
        return 1


def _refuse_functions(spec: KanSpec) -> None:
    """Raises InputError, naming the first, if an edge computes another function than polynomials."""
    for index, layer in enumerate(spec.layers):
        for edge in layer.functions if isinstance(layer, SplineSpec) else ():
            raise InputError(
                f"edge {edge.input} → {edge.output} of layer {index} computes {edge.name}, which is no polynomial: "
                "add approximate=True (--approximate) to write it in polynomial pieces, within bound (--bound)"
            )


def _data_rows(spec: KanSpec, data: str | Path | None) -> NDArray[np.float32]:
    if data is None:
        return np.empty((0, spec.in_features), np.float32)
    from .table import read_inputs

    return read_inputs(data, spec.columns, spec.in_features)[:_MOST_DATA_ROWS]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("relukan-deploy", "numpy", "onnx", "onnxruntime", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
