"""Model files: `save` writes one, `load_checkpoint` reads it without running anything in it.

A `.pt` file is a dictionary of plain values and tensors, read with
`torch.load(weights_only=True)` alone. A `.safetensors` file holds the same tensors, and the rest
as JSON in its metadata. Both hold a checksum, since neither format notices a changed byte among
its numbers. State dicts of the reference ReLU-KAN are recognised by their keys.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._files import replacing_file, sha256
from .errors import CheckpointError, InputError, MissingDependencyError
from .importers import relu_kan
from .importers._tensors import describe, is_plain
from .spec import KanSpec, Task

if TYPE_CHECKING:
    from torch import Tensor

    from .model import ReLUKAN

__all__ = ["Checkpoint", "load_checkpoint", "save"]

_FORMAT = "relukan-deploy checkpoint"
_VERSION = 1
_MEANING = ("task", "columns", "targets", "labels")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network read from a file.

    Attributes:
        model: the network, on the CPU, in the dtype it was saved in.
        task, columns, targets, labels: as in `KanSpec`.
        kind: "relukan-deploy", or the library whose file it was.
    """

    model: ReLUKAN
    task: Task = "regression"
    columns: tuple[str, ...] | None = None
    targets: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    kind: str = "relukan-deploy"

    def spec(self) -> KanSpec:
        """The network in float64, as everything downstream reads it."""
        return self.model.spec(**{name: getattr(self, name) for name in _MEANING})


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
    import torch

    path = Path(path)
    # What could not be exported is not written.
    spec = model.spec(task=task, columns=columns, targets=targets, labels=labels)
    meaning = {name: getattr(spec, name) for name in _MEANING}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "config": model.config,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in meaning.items()},
    }
    header["sha256"] = _checksum(header, state)
    with replacing_file(path) as written:
        if path.suffix == ".safetensors":
            _safetensors().save_file(state, written, metadata={"relukan": json.dumps(header)})
        else:
            torch.save({**header, "state_dict": state}, written)


def load_checkpoint(path: str | Path, *, grid: int | None = None, order: int | None = None) -> Checkpoint:
    """Reads a checkpoint of this project, or a state dict of the reference ReLU-KAN.

    Args:
        path: a .pt or .safetensors file.
        grid, order: only for a reference state dict whose intervals were trained.

    Raises:
        CheckpointError: the file is missing, damaged, or not such a checkpoint.
        MissingDependencyError: torch, or safetensors, is not installed.
    """
    path = Path(path)
    content = _read(path)
    if relu_kan.matches(content):
        try:
            return Checkpoint(relu_kan.load(content, grid=grid, order=order), kind="relu_kan")
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    if grid is not None or order is not None:
        raise CheckpointError(f"{path} holds its own grid and order: leave out --grid and --order")
    return _from_content(path, content)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError("Reading a checkpoint", "torch", "export") from error
    if not path.is_file():
        raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: expected a model file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch asks for reports about files that are not its own
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything here, by what is wrong with the file
        # What torch puts before this advises to read the file with weights_only=False.
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n", 1)[0].partition(". ")[0]
        reason = reason[:200] if " " in reason else type(error).__name__  # an opcode alone says nothing
        if "Unsupported global" in reason:
            advice = (
                "it holds pickled Python objects, which are never run here. "
                "Save weights alone: relukan_deploy.save(model, path), or torch.save(model.state_dict(), path)"
            )
        else:
            advice = f"it is not a PyTorch file, or is truncated ({reason})"
        raise CheckpointError(f"{path} cannot be read: {advice}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}: expected a checkpoint, a dictionary of tensors"
        )
    return content


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


def _from_content(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    from .model import ReLUKAN

    if content.get("format") != _FORMAT:
        keys = ", ".join(map(str, list(content)[:4])) or "none"
        raise CheckpointError(
            f"{path} is not a checkpoint of relukan-deploy nor of the reference ReLU-KAN (its keys: {keys} …). "
            "Write one with relukan_deploy.save(model, path)"
        )
    version = content.get("version")
    if type(version) is not int or version != _VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {version!r}, this release reads {_VERSION}: upgrade relukan-deploy"
        )
    try:
        config, state = dict(content["config"]), dict(content["state_dict"])
        meaning = {name: content[name] for name in _MEANING}
        _check_names(meaning)
        has_range = "layers.0.input_range" in state
        expected = _expected_shapes(config, has_range)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its configuration is incomplete or wrong ({error})") from error
    _check_state(path, expected, state)
    header = {name: value for name, value in content.items() if name not in ("sha256", "state_dict")}
    try:
        checksum = _checksum(header, state)
        model = ReLUKAN(**config, input_range=[[0.0, 1.0]] * config["widths"][0] if has_range else None)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its configuration is incomplete or wrong ({error})") from error
    if content.get("sha256") != checksum:
        raise CheckpointError(f"{path} is damaged: it does not match the checksum it was saved with")
    model = model.to(next(iter(state.values())).dtype)
    model.load_state_dict(state)
    named: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in meaning.items()}
    checkpoint = Checkpoint(model, **named)
    try:
        checkpoint.spec()
    except InputError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return checkpoint


def _check_names(meaning: Mapping[str, Any]) -> None:
    for name, value in meaning.items():
        names = [value] if name == "task" else [] if value is None else value
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise TypeError(f"{name} is {value!r}")


def _expected_shapes(config: Mapping[str, Any], has_range: bool) -> dict[str, tuple[int, ...]]:
    """Of each tensor; known before a network is built, which a damaged size could make enormous."""
    widths, bumps = config["widths"], config["grid"] + config["order"]
    if len(widths) < 2 or not all(type(number) is int for number in (*widths, bumps)):
        raise ValueError(f"widths {widths!r}, grid {config['grid']!r}, order {config['order']!r}")
    shapes: dict[str, tuple[int, ...]] = {"layers.0.input_range": (widths[0], 2)} if has_range else {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        shapes[f"layers.{index}.starts"] = shapes[f"layers.{index}.ends"] = (inputs, bumps)
        shapes[f"layers.{index}.weight"] = (outputs, inputs, bumps)
        shapes[f"layers.{index}.bias"] = (outputs,)
    return shapes


def _check_state(path: Path, expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Any]) -> None:
    missing, unknown = sorted(set(expected) - set(state)), sorted(map(str, set(state) - set(expected)))
    if missing or unknown:
        raise CheckpointError(
            f"{path} is damaged: tensors missing: {missing or 'none'}, not expected: {unknown or 'none'}"
        )
    dtype = getattr(next(iter(state.values())), "dtype", None)
    for key, shape in expected.items():
        if not is_plain(state[key]) or state[key].dtype != dtype:
            raise CheckpointError(
                f"{path} is damaged: {key} is {describe(state[key])}, expected a tensor of floating-point "
                "numbers, of one dtype in the whole file"
            )
        if tuple(state[key].shape) != shape:
            raise CheckpointError(
                f"{path} is damaged: {key} is {tuple(state[key].shape)}, its configuration says {shape}"
            )


def _checksum(header: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all that a checkpoint says."""
    import torch

    parts = [json.dumps(header, sort_keys=True, default=repr).encode()]
    for key, tensor in sorted(state.items()):
        parts += [f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode()]
        parts += [tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()]
    return sha256(b"\n".join(parts))
