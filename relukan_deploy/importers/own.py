"""Checkpoints of this project: what `relukan_deploy.save` wrote, as a `ReLUKAN` and what its answers mean.

The content is a dictionary: `format`, `version`, `config` (the arguments of `ReLUKAN`), the fields of `MEANING`,
`sha256` of all that, and `state_dict`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import sha256
from ..errors import CheckpointError, InputError
from ._tensors import describe, is_plain

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import ReLUKAN

__all__ = ["FORMAT", "MEANING", "VERSION", "checksum", "load", "matches", "network_of"]

FORMAT = "relukan-deploy checkpoint"
VERSION = 1
MEANING = ("task", "columns", "targets", "labels")


def matches(content: Mapping[str, Any]) -> bool:
    """Whether this is a checkpoint of this project, of whatever version."""
    return content.get("format") == FORMAT


def load(path: Path, content: Mapping[str, Any]) -> tuple[ReLUKAN, dict[str, Any]]:
    """The network, on the CPU, in the dtype it was saved in, and the fields of `MEANING`.

    Args:
        path: of the file, for messages.
        content: of the file.

    Raises:
        CheckpointError: it is of another version, or damaged.
    """
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {version!r}, this release reads {VERSION}: upgrade relukan-deploy"
        )
    try:
        config, state = dict(content["config"]), dict(content["state_dict"])
        meaning = {name: content[name] for name in MEANING}
        _check_names(meaning)
        ranged = [key for key in state if isinstance(key, str) and key.endswith(".input_range")]
        expected = _expected_shapes(config, ranged)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its configuration is incomplete or wrong ({error})") from error
    _check_state(path, expected, state)
    header = {name: value for name, value in content.items() if name not in ("sha256", "state_dict")}
    try:
        expected_sum = checksum(header, state)
        model = network_of(config, state).eval()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its configuration is incomplete or wrong ({error})") from error
    if content.get("sha256") != expected_sum:
        raise CheckpointError(f"{path} is damaged: it does not match the checksum it was saved with")
    named: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in meaning.items()}
    try:
        model.spec(**named)
    except InputError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return model, named


def network_of(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> ReLUKAN:
    """The network with this configuration and state dict, on the CPU, in the dtype of the state."""
    from ..model import ReLUKAN

    model = ReLUKAN(**config).to(next(iter(state.values())).dtype)
    for key, value in state.items():  # on any layer: a refined network has them behind the first one too
        if key.endswith(".input_range"):
            model.get_submodule(key.rpartition(".")[0]).input_range = value.clone()
    model.load_state_dict(state)
    return model


def _check_names(meaning: Mapping[str, Any]) -> None:
    for name, value in meaning.items():
        names = [value] if name == "task" else [] if value is None else value
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise TypeError(f"{name} is {value!r}")


def _expected_shapes(config: Mapping[str, Any], ranged: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Of each tensor; known before a network is built, which a damaged size could make enormous."""
    widths, bumps, batch_norm = config["widths"], config["grid"] + config["order"], config.get("batch_norm", False)
    if len(widths) < 2 or not all(type(number) is int for number in (*widths, bumps)) or type(batch_norm) is not bool:
        raise ValueError(f"widths {widths!r}, grid {config['grid']!r}, order {config['order']!r}, {batch_norm=}")
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        shapes[f"layers.{index}.starts"] = shapes[f"layers.{index}.ends"] = (inputs, bumps)
        shapes[f"layers.{index}.weight"] = (outputs, inputs, bumps)
        shapes[f"layers.{index}.bias"] = (outputs,)
        if f"layers.{index}.input_range" in ranged or (batch_norm and index):
            shapes[f"layers.{index}.input_range"] = (inputs, 2)
        if batch_norm and index:
            for name in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"norms.{index - 1}.{name}"] = (inputs,)
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


def checksum(header: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all that a checkpoint says."""
    import torch

    parts = [json.dumps(header, sort_keys=True, default=repr).encode()]
    for key, tensor in sorted(state.items()):
        parts += [f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode()]
        parts += [tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()]
    return sha256(b"\n".join(parts))
