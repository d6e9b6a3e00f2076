"""Model files: `save` writes one, `load_checkpoint` reads it without running anything in it.

A `.pt` file is a dictionary of plain values and tensors, read with
`torch.load(weights_only=True)` alone. A `.safetensors` file holds the same tensors, and the rest
as JSON in its metadata. Both hold a checksum, since neither format notices a changed byte among
its numbers. State dicts of other libraries (importers/) are recognised by their keys.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ._files import replacing_file
from .errors import CheckpointError, InputError, MissingDependencyError
from .importers import _pickled, efficient_kan, own, pykan, relu_kan
from .spec import KanSpec, Task

if TYPE_CHECKING:
    from .model import ReLUKAN

__all__ = ["Checkpoint", "Source", "load_checkpoint", "pickled", "save"]

Source = Literal["relukan-deploy", "relu_kan", "pykan", "efficient-kan"]

_COUNT = "num_batches_tracked"  # of a normalisation; nothing depends on it, and it is no floating-point number

_MATCHES: Mapping[Source, Callable[[Mapping[str, Any]], bool]] = {
    "relukan-deploy": own.matches,
    "relu_kan": relu_kan.matches,
    "pykan": pykan.matches,
    "efficient-kan": efficient_kan.matches,
}
_OPTIONS: Mapping[str, Source] = {"grid": "relu_kan", "order": "relu_kan", "mult_arity": "pykan"}
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # of what training scripts save, with other things beside
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network read from a file.

    Attributes:
        network: a ReLU-KAN on the CPU, in the dtype it was saved in; or a B-spline KAN, in float64.
        file: the file that holds its weights.
        task, columns, targets, labels: as in `KanSpec`.
        kind: "relukan-deploy", or the library whose file it was.
    """

    network: ReLUKAN | KanSpec
    file: Path
    task: Task = "regression"
    columns: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    kind: Source = "relukan-deploy"

    @property
    def model(self) -> ReLUKAN:
        """The network in PyTorch.

        Raises:
            InputError: it is a B-spline KAN, which is read as a `KanSpec` alone.
        """
        if isinstance(self.network, KanSpec):
            raise InputError(f"{self.file} holds a network of {self.kind}, which has no model here: take its spec()")
        return self.network

    def spec(self) -> KanSpec:
        """The network in float64, as everything downstream reads it."""
        if isinstance(self.network, KanSpec):
            return self.network
        return self.network.spec(**{name: getattr(self, name) for name in own.MEANING})


def save(
    model: ReLUKAN,
    path: str | Path,
    *,
    task: Task = "regression",
    columns: tuple[str, ...] | None = None,
    targets: tuple[str, ...] | None = None,
    labels: tuple[str, ...] | None = None,
) -> None:
    """Writes a checkpoint to `path`, replacing what was there only when it is complete.

    Args:
        model: the network; its device does not matter.
        path: ends in .safetensors for that format; anything else is written by `torch.save`.
        task, columns, targets, labels: as in `KanSpec`.

    Raises:
        InputError: columns or labels do not fit the network, or a weight is not finite.
    """
    path = Path(path)
    # What could not be exported is not written.
    spec = model.spec(task=task, columns=columns, targets=targets, labels=labels)
    meaning = {name: getattr(spec, name) for name in own.MEANING}
    tensors = model.state_dict().items()
    state = {key: value.detach().cpu().contiguous() for key, value in tensors if not key.endswith(_COUNT)}
    header = {
        "format": own.FORMAT,
        "version": own.VERSION,
        "config": model.config,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in meaning.items()},
    }
    header["sha256"] = own.checksum(header, state)
    # By way of memory: neither library says that a disk is full.
    if path.suffix == ".safetensors":
        content = _safetensors().save(state, metadata={"relukan": json.dumps(header)})
    else:
        content = pickled({**header, "state_dict": state})
    with replacing_file(path) as written:
        written.write_bytes(content)


def pickled(content: Mapping[str, Any]) -> bytes:
    """What torch.save would write; but it would put the file's name into the file, and not say that a disk is full."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load_checkpoint(
    path: str | Path,
    *,
    source: Source | None = None,
    grid: int | None = None,
    order: int | None = None,
    mult_arity: int | None = None,
) -> Checkpoint:
    """Reads a checkpoint of this project, or a network of another library.

    Args:
        path: a .pt or .safetensors file, of a state dict, of a training checkpoint that holds one, or of a whole
            efficient-kan network; or what pykan's saveckpt wrote: its path, its folder or a file of it.
        source: whose it is; None to tell by its keys.
        grid, order: only for a reference state dict whose intervals were trained.
        mult_arity: only for a pykan state dict: how many sums each of its multiplication nodes multiplies.

    Raises:
        CheckpointError: the file is missing, damaged, or not such a checkpoint.
        MissingDependencyError: torch, safetensors or pyyaml is not installed.
    """
    path = Path(path)
    if source not in (None, *get_args(Source)):
        raise InputError(f"source must be {', '.join(get_args(Source))}, got {source!r}")
    saved = pykan.read_saved(path) if source in (None, "pykan") else None
    file, config = saved or (path, None)
    content, classes = _unwrapped(file, _read(file))
    kind = "pykan" if saved else _source_of(file, content, source)
    for name, value in {"grid": grid, "order": order, "mult_arity": mult_arity}.items():
        if value is not None and _OPTIONS[name] != kind:
            option = f"--{name.replace('_', '-')}"
            raise CheckpointError(
                f"{path} is a checkpoint of {kind}, and {option} is a matter of {_OPTIONS[name]}: leave it out"
            )
    if kind == "relukan-deploy":
        model, meaning = own.load(file, content)
        return Checkpoint(model, file, **meaning)
    try:
        network: ReLUKAN | KanSpec
        if kind == "relu_kan":
            network = relu_kan.load(content, grid=grid, order=order)
        elif kind == "pykan":
            network = pykan.load(content, config=config, mult_arity=mult_arity)
        else:
            network = efficient_kan.load(content, base=efficient_kan.base_of(classes) if classes else "silu")
    except InputError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return Checkpoint(network, file, kind=kind)


def _unwrapped(path: Path, content: Any) -> tuple[Mapping[str, Any], dict[str, str]]:
    """A state dict, or a checkpoint of our own; and the classes of the network's modules, if it was saved whole."""
    if isinstance(content, Mapping) and not _MATCHES["relukan-deploy"](content):
        inside = [content[key] for key in _WRAPPERS if isinstance(content.get(key), (Mapping, _pickled.Inert))]
        content = inside[0] if inside else content
    classes: dict[str, str] = {}
    if isinstance(content, _pickled.Inert):
        try:
            content, classes = _pickled.unpack(content)
        except CheckpointError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}: expected a checkpoint, a dictionary of tensors"
        )
    for prefix in _PREFIXES * 2:  # either may be around the other
        if content and all(isinstance(key, str) and key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content, classes


def _source_of(path: Path, content: Mapping[str, Any], source: Source | None) -> Source:
    """Whose checkpoint it is: that of `source`, if one is given."""
    found = [kind for kind, matches in _MATCHES.items() if source in (None, kind) and matches(content)]
    if found:
        return found[0]
    keys = list(map(str, content))
    shown = f"its keys: {', '.join(keys[:4]) or 'none'}{', …' if len(keys) > 4 else ''}"
    if source is not None:
        raise CheckpointError(f"{path} is not a checkpoint of {source} ({shown}): leave out --from to go by its keys")
    if any(".rbf." in key or ".spline_linear." in key for key in keys):
        raise CheckpointError(
            f"{path} is a checkpoint of fast-kan, whose Gaussian radial basis functions are no piecewise "
            "polynomials: there is no exact form of it to export. Train the network with pykan or efficient-kan"
        )
    raise CheckpointError(
        f"{path} is not a checkpoint of relukan-deploy, the reference ReLU-KAN (relu_kan), pykan or efficient-kan "
        f"({shown}). Save the state dict of one of theirs: torch.save(model.state_dict(), path)"
    )


def _read(path: Path) -> Any:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("Reading a checkpoint", "torch", "export") from error
    if not path.is_file():
        raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: expected a model file")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _pickled.read(path)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    safetensors = _safetensors()
    try:
        state = safetensors.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get("relukan", "{}"))
            if not isinstance(header, dict):
                raise ValueError(f"its metadata holds a {type(header).__name__}")
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read: it is not a safetensors file, or is truncated ({error})"
        ) from error
    return {**header, "state_dict": state} if header else state


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingDependencyError("A .safetensors checkpoint", "safetensors", "train") from error
    return safetensors.torch
