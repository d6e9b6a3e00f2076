"""A bundle as an entry of a model repository, which NVIDIA's Triton Inference Server reads.

    REPO/NAME/config.pbtxt    what is served, and how requests are joined into batches
    REPO/NAME/labels.txt      of a classification: one class a line, in the order of the outputs
    REPO/NAME/warmup/x        a golden input
    REPO/NAME/VERSION/        model.plan, or model.onnx, or model.py and a copy of the bundle

Clients see input "x" ``(batch, in)`` and output "y" ``(batch, out)``, as those of relukan-serve do.

A server that polls takes every folder of the repository for a model, hidden ones too, and an unfinished
one can leave it unready for good. So a version is written beside the repository and renamed into it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from .._files import replacing_file, replacing_folder
from ..bundle import MANIFEST, Artifact, Bundle
from ..errors import InputError
from ..lowering import storage_dtype
from ..spec import Layout, Precision

__all__ = ["TritonBackend", "TritonOptions", "check_entry", "to_triton"]

TritonBackend = Literal["auto", "tensorrt_plan", "onnxruntime", "python"]

_CONFIG, _LABELS, _WARMUP = "config.pbtxt", "labels.txt", "warmup/x"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # needs no escaping in a URL
_SIGNED = "# Written by relukan-export for"
_ELEMENTS: dict[Precision, str] = {"fp32": "TYPE_FP32", "tf32": "TYPE_FP32", "fp16": "TYPE_FP16", "bf16": "TYPE_BF16"}
_MODEL_PY = '''"""Runs the bundle beside this file. Triton's Python needs: pip install relukan-deploy"""

from relukan_deploy.runtime.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclasses.dataclass(frozen=True)
class TritonOptions:
    """Where an entry goes, and how Triton runs it.

    Attributes:
        repository: the folder that `tritonserver --model-repository` names.
        name: the model's; None takes the name of the bundle's folder.
        backend: "tensorrt_plan" serves the TensorRT engine, "onnxruntime" the graph, "python" the
            bundle in this project's own runtime; "auto" takes the engine if there is one, else the graph.
        instances: how many batches run at once; for an engine, on each GPU.
        max_delay: the longest that a request waits for others to join it, in seconds.

    Raises:
        InputError: a value that cannot be used.
    """

    repository: Path
    name: str | None = None
    backend: TritonBackend = "auto"
    instances: int = 1
    max_delay: float = 0.0

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise InputError(f"instances must be at least 1, got {self.instances}")
        if not 0 <= self.max_delay < math.inf:
            raise InputError(f"max_delay must be a time in seconds from 0 on, got {self.max_delay}")


def to_triton(bundle: Bundle, options: TritonOptions, *, batch: tuple[int, int, int] = (1, 64, 1024)) -> Path:
    """Adds a bundle to a model repository, as the next version of its model.

    The files all versions share are replaced where they differ, config.pbtxt last. Older versions stay
    on the disk, and Triton serves the newest alone.

    Args:
        bundle: what is served.
        options: where and how.
        batch: smallest, most frequent and largest batch in rows; an engine's own replace them.

    Returns:
        The folder of the version.

    Raises:
        InputError: the bundle holds nothing that the backend can serve, the name cannot be used or
            belongs to another model, or the repository cannot be written.
    """
    artifact, backend = _choose(bundle, options.backend)
    place = check_entry(options, bundle.path, artifact.layout)
    if backend == "tensorrt_plan":
        batch = artifact.batch or batch
        if batch[0] > 1:
            raise InputError(
                f"the engine takes {batch[0]} rows or more, and Triton also sends single ones: export with "
                f"--batch 1 {batch[1]} {batch[2]}"
            )
    element = "TYPE_FP32" if backend == "python" else _ELEMENTS[artifact.precision]
    interface = _interface(bundle, element)
    shared: dict[str, bytes] = {_WARMUP: _warmup(bundle, artifact, element)}
    if bundle.manifest.labels:
        shared[_LABELS] = "".join(" ".join(label.splitlines()) + "\n" for label in bundle.manifest.labels).encode()
    config = _config(bundle, backend, element, batch, options)
    shared[_CONFIG] = f"{interface}\n\n{_as_text(config)}".encode()
    try:
        return _add(place, interface, shared, _version_files(bundle, artifact, backend))
    except OSError as error:
        raise InputError(
            f"{place} cannot be written ({error}). A version is written beside the repository and renamed into "
            f"it, so {place.parent.parent} has to be writable and on the same file system"
        ) from error


def check_entry(options: TritonOptions, bundle: Path, layout: Layout) -> Path:
    """The model's folder in the repository, which need not exist. A check before much is done.

    Args:
        options: of the entry.
        bundle: where the bundle is, or will be.
        layout: of its graph and engine.

    Raises:
        InputError: the backend cannot serve that layout, the name cannot be used, or something else
            is in the way.
    """
    if options.backend != "python" and layout != "batch-major":
        raise InputError(
            f"Triton joins requests along axis 0, and {layout} has the batch on another: export with --layout "
            "batch-major, or add --triton-backend python, whose runtime takes either"
        )
    name = bundle.name if options.name is None else options.name
    if not _NAME.fullmatch(name):
        raise InputError(f"a model's name in Triton has letters, digits, '.', '_' and '-', got {name!r}: give --name")
    repository, bundle = options.repository.resolve(), bundle.resolve()
    if repository == bundle or repository in bundle.parents or bundle in repository.parents:
        raise InputError(
            f"the bundle {bundle} and the model repository {repository} lie in one another, and Triton takes every "
            "folder of its repository for a model: choose another place with -o"
        )
    place = repository / name
    if place.exists() and _signature(place) is None:
        raise InputError(f"{place} is a model that relukan-export did not write: it is left alone. Give another --name")
    return place


def _choose(bundle: Bundle, backend: TritonBackend) -> tuple[Artifact, TritonBackend]:
    """What is served, and by which backend."""
    artifacts = {artifact.kind: artifact for artifact in bundle.manifest.artifacts}
    if backend == "auto":
        backend = "tensorrt_plan" if "tensorrt" in artifacts else "onnxruntime"
    artifact = artifacts.get("tensorrt" if backend == "tensorrt_plan" else "onnx")
    if artifact is None:
        other = "tensorrt-rtx" in artifacts
        raise InputError(
            f"Triton's {backend} cannot serve {bundle.path}: "
            + ("its engine is of TensorRT-RTX, which Triton has no backend for" if other else "it holds no engine")
            + ". Export on the target GPU with --trt --flavour tensorrt, or choose another --triton-backend"
        )
    if backend == "onnxruntime" and artifact.precision == "bf16":
        raise InputError(
            "ONNX Runtime has no bf16 Conv on a CPU: choose --precision fp16 or fp32, or an engine (--trt)"
        )
    return artifact, backend


def _interface(bundle: Bundle, element: str) -> str:
    """The first line of a config.pbtxt: what clients of the model rely on, from version to version."""
    manifest = bundle.manifest
    return f"{_SIGNED} x {element} [{manifest.in_features}], y {element} [{manifest.out_features}]"


def _warmup(bundle: Bundle, artifact: Artifact, element: str) -> bytes:
    """One golden row as the tensor's bytes. Triton repeats it for a larger batch."""
    x, _ = bundle.golden()
    dtype = storage_dtype("fp32" if element == "TYPE_FP32" else artifact.precision)
    return x[:1].astype(dtype).tobytes()


def _version_files(bundle: Bundle, artifact: Artifact, backend: TritonBackend) -> dict[str, bytes]:
    if backend == "python":
        content = {MANIFEST: bundle.raw_manifest, **bundle.contents}
        return {"model.py": _MODEL_PY.encode(), **{f"bundle/{name}": data for name, data in content.items()}}
    return {"model.plan" if backend == "tensorrt_plan" else "model.onnx": bundle.contents[artifact.file]}


# --- config.pbtxt


class _Symbol(str):
    """A value of an enumeration, which is written without quotes."""


def _config(
    bundle: Bundle, backend: TritonBackend, element: str, batch: tuple[int, int, int], options: TritonOptions
) -> dict[str, Any]:
    """The fields of Triton's ModelConfig. It has no name: the folder's holds, also for a copy of it."""
    manifest = bundle.manifest
    own_runtime = backend == "python"
    labels = {"label_filename": _LABELS} if manifest.labels else {}
    # KIND_MODEL leaves the choice of a device to the model: our runtime takes the best there is.
    kind = {"tensorrt_plan": "KIND_GPU", "onnxruntime": "KIND_CPU", "python": "KIND_MODEL"}[backend]
    row = {"data_type": _Symbol(element), "dims": [manifest.in_features], "input_data_file": "x"}
    config: dict[str, Any] = {
        "backend": "tensorrt" if backend == "tensorrt_plan" else backend,
        "max_batch_size": batch[2],
        "input": [_tensor("x", element, manifest.in_features, graph=not own_runtime)],
        "output": [_tensor("y", element, manifest.out_features, graph=not own_runtime) | labels],
        "instance_group": [{"kind": _Symbol(kind), "count": options.instances}],
        "dynamic_batching": {
            "preferred_batch_size": sorted({batch[1], batch[2]}),
            "max_queue_delay_microseconds": round(options.max_delay * 1e6),
        },
        "version_policy": {"latest": {"num_versions": 1}},
        "model_warmup": [
            {"name": f"batch of {size}", "batch_size": size, "inputs": {"key": "x", "value": row}}
            for size in sorted({1, *batch[1:]})
        ],
    }
    if backend == "onnxruntime":  # its default, a thread for every core, costs such small graphs more than it gains
        config["parameters"] = {"key": "intra_op_thread_count", "value": {"string_value": "1"}}
    return config


def _tensor(name: str, element: str, features: int, *, graph: bool) -> dict[str, Any]:
    """One row, behind the batch. The graph has an axis more than its clients need to know of."""
    tensor: dict[str, Any] = {"name": name, "data_type": _Symbol(element), "dims": [features]}
    return tensor | ({"reshape": {"shape": [features, 1]}} if graph else {})


def _as_text(fields: Mapping[str, Any], indent: str = "") -> str:
    """A message in protobuf's text format."""
    text = ""
    for key, value in fields.items():
        if isinstance(value, list) and not isinstance(value[0], Mapping):
            text += f"{indent}{key}: [{', '.join(map(str, value))}]\n"
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                text += f"{indent}{key} {{\n{_as_text(each, indent + '  ')}{indent}}}\n"
            else:
                text += f"{indent}{key}: {_scalar(each)}\n"
    return text


def _scalar(value: int | str) -> str:
    if isinstance(value, _Symbol) or not isinstance(value, str):
        return str(value)
    return '"' + re.sub(r'[\\"]', r"\\\g<0>", value) + '"'


# --- the repository


def _add(place: Path, interface: str, shared: Mapping[str, bytes], own: Mapping[str, bytes]) -> Path:
    """Puts a version into the repository, and gives its folder."""
    repository = place.parent
    repository.mkdir(parents=True, exist_ok=True)
    with _lock(repository):
        if not place.exists():
            with replacing_folder(place, aside=repository.parent) as folder:
                _write(folder, {**shared, **{f"1/{name}": content for name, content in own.items()}})
            return place / "1"
        present = _signature(place)
        if present != interface:
            raise InputError(
                f"clients of {place} rely on {(present or '').removeprefix(_SIGNED).strip()}, and this network has "
                f"{interface.removeprefix(_SIGNED).strip()}: give another --name, or remove that folder"
            )
        numbers = [int(entry.name) for entry in place.iterdir() if entry.name.isdecimal()]
        version = place / str(max(numbers, default=0) + 1)
        with replacing_folder(version, aside=repository.parent) as folder:
            _write(folder, own)
        for name, content in shared.items():
            path = place / name
            if not path.is_file() or path.read_bytes() != content:
                with replacing_file(path) as written:
                    written.write_bytes(content)
        return version


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps another export from taking the same version number."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # gives the lock back


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _signature(place: Path) -> str | None:
    """The first line of the model's config.pbtxt if an export wrote it."""
    try:
        first = (place / _CONFIG).read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return None
    return first if first.startswith(_SIGNED) else None
