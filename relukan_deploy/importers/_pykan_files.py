"""What pykan's `model.saveckpt('mark')` writes, found and read without building any Python object.

    mark_state        the state dict, as `torch.save` writes it
    mark_config.yml   what the network was built with, and the names of its symbolic functions
    mark_cache_data   its last input: not needed, never opened

pykan's auto_save writes the same into a folder, ./model unless told otherwise, after every change:
0.0_config.yml, 0.0_state, 0.1_config.yml …
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingDependencyError

__all__ = ["Config", "parse_config", "read_saved"]

_CONFIG, _STATE = "_config.yml", "_state"
_MOST = 1 << 20  # nodes: no memory for more is asked for, whatever a file says


@dataclasses.dataclass(frozen=True)
class Config:
    """What weights alone do not say.

    Attributes:
        nodes: how many inputs there are, and how many outputs each layer has.
        arities: for each layer, how many sums each of its multiplication nodes multiplies.
        base: the name of the base function.
        functions: for each layer the name of every edge's symbolic function, ``[output][input]``;
            None where the network leaves its symbolic branch out.
    """

    nodes: tuple[int, ...]
    arities: tuple[tuple[int, ...], ...]
    base: str
    functions: tuple[Sequence[Sequence[str]], ...] | None


def parse_config(config: Mapping[str, Any]) -> Config:
    """The part of a configuration that changes what the network computes.

    Raises:
        CheckpointError: something is missing, or is not what pykan writes.
    """
    try:
        width = [(_count(sums), _count(products)) for sums, products in config["width"]]
        arity = config["mult_arity"]
        per_layer = arity if isinstance(arity, list) else [[arity] * products for _, products in width]
        arities = tuple(tuple(_count(each, 2) for each in layer) for layer in per_layer[1:])
        if [len(layer) for layer in arities] != [products for _, products in width[1:]]:
            raise ValueError(f"mult_arity {arity!r} is not for width {config['width']!r}")
        functions = None
        if _known(config["symbolic_enabled"], bool):
            functions = tuple(config[f"symbolic.funs_name.{index}"] for index in range(len(arities)))
            _check_names(functions, width, arities)
        return Config(tuple(map(sum, width)), arities, _known(config["base_fun_name"], str), functions)
    except KeyError as error:
        raise CheckpointError(f"the configuration of this checkpoint of pykan lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the configuration of this checkpoint of pykan is not what it writes: {error}"
        ) from error


def read_saved(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The file of the state dict and the configuration that `model.saveckpt` wrote; None if `path` leads to none.

    Args:
        path: what saveckpt was given ("mark"), one of the files mark_state and mark_config.yml, or a
            folder that holds them.

    Raises:
        CheckpointError: there are several, the state dict is missing, or the configuration cannot be read.
        MissingDependencyError: PyYAML is not installed.
    """
    found = _prefixes(path)
    if not found:
        return None
    if len(found) > 1:
        newest = sorted(found, key=lambda each: (_beside(each, _CONFIG).stat().st_mtime_ns, each), reverse=True)
        raise CheckpointError(
            f"{path} leads to {len(found)} checkpoints of pykan: give one of "
            f"{', '.join(map(str, newest[:6]))}{' …' if len(newest) > 6 else ''} (newest first)"
        )
    state, config = _beside(found[0], _STATE), _beside(found[0], _CONFIG)
    if not state.is_file():
        raise CheckpointError(f"{state} is not there: pykan's model.saveckpt writes it beside {config.name}")
    return state, _read_config(config)


def _prefixes(path: Path) -> list[Path]:
    """What saveckpt may have been given, so that this path is a part of what it wrote."""
    if path.is_file():
        named = [path.with_name(path.name[: -len(end)]) for end in (_CONFIG, _STATE) if path.name.endswith(end)]
        return [each for each in named if _beside(each, _CONFIG).is_file()]
    inside = [each.with_name(each.name[: -len(_CONFIG)]) for each in path.glob(f"*{_CONFIG}")] if path.is_dir() else []
    return [path, *inside] if path.name and _beside(path, _CONFIG).is_file() else inside


def _beside(prefix: Path, end: str) -> Path:
    return prefix.with_name(prefix.name + end)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError("Reading what pykan's model.saveckpt wrote", "pyyaml", "export") from error
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        raise CheckpointError(
            f"{path} holds a Python object, which is never built here, in line {line + 1}: "
            f"{text.splitlines()[line].strip()[:100]}. Give the network plain values and save it again: where pykan's "
            "prune_input put an object, del model.base_fun_name; model.base_fun_name = 'silu'; model.saveckpt('mark')"
        ) from error
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: it is not a YAML file ({type(error).__name__})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}: expected what pykan's model.saveckpt writes")
    return config


def _check_names(
    functions: Sequence[Sequence[Sequence[Any]]], width: Sequence[Sequence[int]], arities: Sequence[Sequence[int]]
) -> None:
    for index, (layer, arity) in enumerate(zip(functions, arities, strict=True)):
        sums, inputs = width[index + 1][0] + sum(arity), sum(width[index])
        if len(layer) != sums or any(len(row) != inputs for row in layer):
            raise ValueError(f"symbolic.funs_name.{index} is not for {inputs} inputs and {sums} sums")
        for name in (name for row in layer for name in row):
            _known(name, str)


def _count(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _MOST:
        raise ValueError(f"{value!r}, expected a whole number from {least} to {_MOST}")
    return value


def _known(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{value!r}, expected a {kind.__name__}")
    return value
