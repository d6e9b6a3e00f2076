"""The bundle: a folder with a network's artifacts, its golden answers, and what is known of them.

    model.onnx       the graph
    model.engine     the TensorRT engine, raw, if there is one
    golden.npz       x (rows, in) float32 and the float64 reference's y (rows, out)
    manifest.json    everything else, with the SHA-256 of each file above and of itself

Opening a bundle reads every file once and refuses it if a byte has changed. Writing one puts a
complete new folder in the place of the old.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import io
import json
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ._files import replacing_folder, sha256
from .approximation import SILU, Approximation
from .errors import BundleError
from .spec import Form, Layout, Precision, Task

__all__ = [
    "Artifact",
    "ArtifactKind",
    "Bundle",
    "File",
    "Manifest",
    "SplineShape",
    "open_bundle",
    "replacing_bundle",
    "write_manifest",
]

MANIFEST, ONNX, ENGINE, GOLDEN = "manifest.json", "model.onnx", "model.engine", "golden.npz"
SCHEMA_VERSION = 1
_FORMAT = "relukan-deploy bundle"
_NO_DIGEST = "0" * 64
_MOST_MANIFEST_BYTES = 1 << 26  # a name of 60 characters for each of a million inputs
_MOST_GOLDEN_BYTES = 1 << 30
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # leads nowhere else

ArtifactKind = Literal["onnx", "tensorrt", "tensorrt-rtx"]


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One file that computes the network.

    Attributes:
        file: its name in the bundle.
        kind: what runs it.
        precision, layout, form: how it was written; see `lowering`.
        batch: an engine's smallest, most frequent and largest batch; None for any batch.
        constants: names and shapes of the graph's constants, which `Runner.refit` replaces.
        tolerance: the largest error allowed, relative to max(1, max|y|).
        verified: whether it was compared with the float64 reference, in the way parity["backend"]
            says: run, or, where nothing here runs its types, with its rounding emulated.
        reason: why it was not verified, or None.
        parity: the figures of that comparison, or None.
        details: operators, versions, GPU, build time: for people and other tools to read.
    """

    file: str
    kind: ArtifactKind
    precision: Precision
    layout: Layout
    form: Form
    tolerance: float
    batch: tuple[int, int, int] | None = None
    constants: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    verified: bool = False
    reason: str | None = None
    parity: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class File:
    """What a file has to be like: its SHA-256, and its size in bytes."""

    sha256: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class SplineShape:
    """How large one layer of splines is, in whatever form it was written.

    Attributes:
        degree: of its splines.
        basis: how many splines there are on each input: grid + degree.
        sums: how many sums of edges: the outputs, or more where some of them are multiplied.
        branches: functions of each input beside its splines: SiLU, and powers of it.
    """

    degree: int
    basis: int
    sums: int
    branches: int


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        widths: features before, between and after the layers.
        task, columns, targets, labels: as in `KanSpec`.
        domain: for each input the interval outside which it has left what was learnt, or None for an
            input that never matters.
        artifacts: the files that compute the network.
        source: the checkpoint: its file name, SHA-256 and kind.
        version: 1, and one more each time the bundle is exported over an older one.
        versions: of the tools that wrote the bundle.
        created: UTC, ISO 8601.
        files: SHA-256 and size in bytes of every file but the manifest.
        approximations: what the artifacts compute only within a bound, if anything.
        splines: of each layer, for a network of splines; of bumps the graph's constants tell as much.
    """

    widths: tuple[int, ...]
    task: Task
    columns: tuple[str, ...] | None
    targets: tuple[str, ...] | None
    labels: tuple[str, ...] | None
    domain: tuple[tuple[float, float] | None, ...]
    artifacts: tuple[Artifact, ...]
    source: Mapping[str, str] = dataclasses.field(default_factory=dict)
    version: int = 1
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    created: str = ""
    files: Mapping[str, File] = dataclasses.field(default_factory=dict)
    approximations: tuple[Approximation, ...] = ()
    splines: tuple[SplineShape, ...] = ()

    @property
    def in_features(self) -> int:
        return self.widths[0]

    @property
    def out_features(self) -> int:
        return self.widths[-1]

    @property
    def approximating(self) -> dict[str, Any]:
        """`strict` and `bound`, as the artifacts were lowered with; neither matters without approximations."""
        if not self.approximations:
            return {}
        strict = any(each.function == SILU for each in self.approximations)
        return {"strict": strict, "bound": self.approximations[0].bound}

    @property
    def input_names(self) -> tuple[str, ...]:
        """The columns, or x0, x1, … where they were never named."""
        return self.columns or tuple(f"x{index}" for index in range(self.in_features))


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle: its manifest, also as it was read, and the contents of the other files, all checked."""

    path: Path
    manifest: Manifest
    raw_manifest: bytes
    contents: Mapping[str, bytes]

    def golden(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """x ``(rows, in)`` float32 and the float64 reference's y ``(rows, out)``.

        Raises:
            BundleError: golden.npz does not fit the network.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(self.contents[GOLDEN])) as archive:  # nothing is unpacked yet
                size = sum(entry.file_size for entry in archive.infolist())
            if size > _MOST_GOLDEN_BYTES:
                raise ValueError(f"it unpacks to {size} bytes, expected at most {_MOST_GOLDEN_BYTES}")
            with np.load(io.BytesIO(self.contents[GOLDEN]), allow_pickle=False) as arrays:
                x, y = arrays["x"], arrays["y"]
        except Exception as error:  # numpy and zipfile raise nearly anything here
            raise BundleError(f"{self.path / GOLDEN} cannot be read: {error}") from error
        rows = len(x) if x.ndim else 0
        expected = (rows, self.manifest.in_features), (rows, self.manifest.out_features)
        if not rows or (x.shape, y.shape) != expected or (x.dtype, y.dtype) != (np.float32, np.float64):
            raise BundleError(
                f"{self.path / GOLDEN} holds x {x.shape} {x.dtype} and y {y.shape} {y.dtype}, expected at least one "
                f"row of {self.manifest.in_features} float32 inputs and {self.manifest.out_features} float64 answers"
            )
        return x, y


def open_bundle(path: str | Path | Bundle) -> Bundle:
    """Opens a bundle and checks every file in it; one that is open already is given back.

    Raises:
        BundleError: it is not a bundle, a file is missing or has changed, or it was written by a
            later release.
    """
    if isinstance(path, Bundle):
        return path
    path = Path(path)
    seen = None
    while True:
        raw = _read_manifest(path)
        try:
            manifest = _parse(path, raw)
            contents = {name: _read_checked(path / name, entry) for name, entry in manifest.files.items()}
        except BundleError:
            if raw != seen:  # it may have been replaced while we read, once or twice
                seen = raw
                continue
            raise
        missing = {GOLDEN, *(artifact.file for artifact in manifest.artifacts)} - set(contents)
        if missing:
            raise BundleError(f"{path / MANIFEST} lists no {', '.join(sorted(missing))}: {_mend(path)}")
        return Bundle(path, manifest, raw, contents)


@contextlib.contextmanager
def replacing_bundle(path: Path) -> Iterator[Path]:
    """Gives an empty folder that becomes the bundle `path` at the end; see `replacing_folder`.

    Where `path` is a symbolic link, what it leads to is replaced.

    Raises:
        BundleError: something that is not a bundle is in the way, or the place cannot be written.
    """
    try:
        _check_replaceable(path)
        with replacing_folder(path) as folder:
            yield folder
    except OSError as error:
        raise BundleError(f"{path} cannot be written ({error}). Choose another place with -o") from error


def _check_replaceable(path: Path) -> None:
    """Raises BundleError if something would be lost that no export wrote."""
    if not path.exists():
        return
    where = path.resolve()
    if where == Path.cwd() or where in Path.cwd().parents:
        raise BundleError(f"{path} holds the current folder, which would be moved away. Choose another place with -o")
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else None
    if names == set():
        return
    if names is None or not _is_bundle(path):
        raise BundleError(f"{path} exists and is not a bundle: it is left alone. Choose another place with -o")
    foreign = sorted(names - {MANIFEST, ONNX, ENGINE, GOLDEN})
    if foreign:
        raise BundleError(f"{path} also holds {foreign[0]}, which would be lost: choose another place with -o")


def _is_bundle(path: Path) -> bool:
    """Whether `path` is a bundle, damaged or not. Other tools write a manifest.json too."""
    try:
        content = json.loads(_read(path / MANIFEST, _MOST_MANIFEST_BYTES))
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") == _FORMAT


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Writes manifest.json for the files in `folder`, and returns it with their hashes."""
    files = {}
    for file in sorted(folder.iterdir()):
        if file.name != MANIFEST:
            data = file.read_bytes()
            files[file.name] = File(sha256(data), len(data))
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    manifest = dataclasses.replace(manifest, files=files, created=manifest.created or now)
    content = {
        "format": _FORMAT,
        "schema_version": SCHEMA_VERSION,
        **dataclasses.asdict(manifest),
        "manifest_sha256": _NO_DIGEST,
    }
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False).encode() + b"\n"
    (folder / MANIFEST).write_bytes(text.replace(_NO_DIGEST.encode(), sha256(text).encode()))
    return manifest


def _read_manifest(path: Path) -> bytes:
    if not path.is_dir():
        raise BundleError(f"{path} is not a bundle: expected the folder that relukan-export wrote")
    try:
        raw = _read(path / MANIFEST, _MOST_MANIFEST_BYTES)
    except OSError as error:
        raise BundleError(f"{path} is not a bundle: it has no readable {MANIFEST} ({error.strerror})") from error
    if len(raw) > _MOST_MANIFEST_BYTES:
        raise BundleError(f"{path / MANIFEST} is too large, expected at most {_MOST_MANIFEST_BYTES} bytes")
    return raw


def _read(path: Path, most: int) -> bytes:
    """What a file holds, or if that is more than `most` bytes, so many and one more.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, which may have no end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        return file.read(min(status.st_size, most) + 1)


def _read_checked(path: Path, entry: File) -> bytes:
    try:
        data = _read(path, entry.bytes)
    except OSError as error:
        raise BundleError(f"{path} is missing or cannot be read ({error.strerror}): {_mend(path.parent)}") from error
    if len(data) != entry.bytes or sha256(data) != entry.sha256:
        raise BundleError(f"{path} has changed since it was written: its SHA-256 differs. {_mend(path.parent)}")
    return data


def _mend(path: Path) -> str:
    return f"Export the network again: relukan-export CHECKPOINT -o {path}"


def _parse(path: Path, raw: bytes) -> Manifest:
    where = path / MANIFEST
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is damaged: {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise BundleError(f"{where} is not the manifest of a bundle")
    version = content.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {version!r}, this release reads {SCHEMA_VERSION}: "
            "upgrade relukan-deploy: pip install -U relukan-deploy"
        )
    digest = str(content.pop("manifest_sha256", ""))
    if not _DIGEST.fullmatch(digest) or sha256(raw.replace(digest.encode(), _NO_DIGEST.encode())) != digest:
        raise BundleError(f"{where} has changed since it was written: its SHA-256 differs. {_mend(path)}")
    try:
        manifest = msgspec.convert(content, Manifest)
        _check(manifest)
    except (msgspec.ValidationError, ValueError) as error:
        raise BundleError(f"{where} is damaged: {error}") from error
    return manifest


def _check(manifest: Manifest) -> None:
    """Raises ValueError where the fields, each of the right type, make no sense together."""
    for name in (*manifest.files, *(artifact.file for artifact in manifest.artifacts)):
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a file in the folder")
    if min((file.bytes for file in manifest.files.values()), default=0) < 0:
        raise ValueError("a file has less than 0 bytes")
    if manifest.version < 1:
        raise ValueError(f"version is {manifest.version}, expected 1 or more")
    widths = manifest.widths
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths are {widths}, expected two or more from 1 on")
    for what, names, count in (
        ("domain", manifest.domain, widths[0]),
        ("columns", manifest.columns, widths[0]),
        ("labels", manifest.labels, widths[-1]),
    ):
        if names is not None and len(names) != count:
            raise ValueError(f"{what} has {len(names)} entries, expected {count}")
    for interval in manifest.domain:
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"the domain holds {interval}, expected low < high")
    for approximation in manifest.approximations:
        if not approximation.bound > 0:
            raise ValueError(f"{approximation.function} has the bound {approximation.bound}, expected more than 0")
    if manifest.splines and len(manifest.splines) != len(widths) - 1:
        raise ValueError(f"splines has {len(manifest.splines)} entries, expected {len(widths) - 1}")
    for layer in manifest.splines:
        if min(layer.degree, layer.basis - layer.degree, layer.sums, layer.branches + 1) < 1:
            raise ValueError(f"a layer has the shape {layer}, expected basis > degree > 0 and sums > 0")
    if not any(artifact.kind == "onnx" for artifact in manifest.artifacts):
        raise ValueError("artifacts has no onnx entry, expected the graph that every export writes")
    for artifact in manifest.artifacts:
        for name, shape in artifact.constants.items():
            if min(shape, default=1) < 1:
                raise ValueError(f"the constant {name!r} of {artifact.file} has the shape {shape}, expected 1 or more")
        if artifact.kind != "onnx" and not (artifact.batch and 1 <= artifact.batch[0] <= artifact.batch[2]):
            raise ValueError(f"{artifact.file} has the batch sizes {artifact.batch}")
