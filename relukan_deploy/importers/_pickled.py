"""What a file of `torch.save` holds, without running anything in it.

A pickle names functions and classes, which unpickling calls. Here `torch.load(weights_only=True)`
reads it, which knows only those that tensors are made of. In a network that was saved whole, the
classes of its modules are named too: an empty class of our own takes the place of each, never
what the name stands for, and holds the module's attributes. Any other name is refused.
"""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

__all__ = ["Inert", "read", "unpack"]

_ADVICE = "Save weights alone: torch.save(model.state_dict(), path)"
_INSTEAD = {"kan": "model.saveckpt(path)", "relukan_deploy": "relukan_deploy.save(model, path)"}
_MOST_MODULES = 1000  # a file can hold a module within itself, and so without end
_NEWER_PICKLE = "Unsupported operand 149"  # what protocol 4 begins with
_GLOBAL = re.compile(r"nsupported (?:global: )?GLOBAL (\S+)")
_READING = threading.Lock()  # what torch.load is to know is one list for the whole process


class Inert:
    """Stands for a module of a network that was saved whole: its attributes, and none of its code."""

    name = ""  # of the class it stands for


def read(path: Path) -> Any:
    """The content of a file of `torch.save`, tensors on the CPU; modules in it are `Inert`.

    Raises:
        CheckpointError: it is none, is damaged, or names what would run.
    """
    import torch

    names = _globals(path)
    strangers = [name for name in names if not _is_module(name)]
    if strangers:
        raise _refusal(path, strangers)
    try:
        with warnings.catch_warnings(), _known(names):
            warnings.simplefilter("ignore")  # torch asks for reports about files that are not its own
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything here, by what is wrong with the file
        text = str(error)
        if found := _GLOBAL.search(text):
            raise _refusal(path, [found.group(1)]) from error
        if "torchscript" in text.lower():
            advice = f"it is a TorchScript file, which is a program. {_ADVICE}"
        elif _NEWER_PICKLE in text and _start(path) in (b"PK", b"\x80\x04", b"\x80\x05"):
            advice = f"it is a pickle of protocol 4 or later, which is not torch.save's own. {_ADVICE}"
        else:
            # What torch puts before this advises to read the file with weights_only=False.
            reason = text.rpartition("WeightsUnpickler error:")[2].strip().split("\n", 1)[0].partition(". ")[0]
            # Of a table or a text, read as a pickle, it says nothing, and neither does a key alone.
            told = f" ({reason[:200]})" if " " in reason and _start(path) == b"PK" else ""
            advice = f"it is not a PyTorch file, or is truncated{told}: expected what torch.save wrote"
        raise CheckpointError(f"{path} cannot be read: {advice}") from error


def unpack(network: Inert) -> tuple[dict[str, Any], dict[str, str]]:
    """A network that was saved whole: its state dict, and the class of each of its modules by the module's name.

    Raises:
        CheckpointError: its modules are not as torch.nn.Module keeps them.
    """
    state: dict[str, Any] = {}
    classes: dict[str, str] = {}
    waiting: list[tuple[str, Any]] = [("", network)]
    while waiting:
        name, module = waiting.pop()
        if not isinstance(module, Inert) or len(classes) == _MOST_MODULES:
            raise CheckpointError(f"its module {name[:80]!r} is no module, or one of more than {_MOST_MODULES}")
        classes[name] = type(module).name
        prefix = f"{name}." if name else ""
        parts = [vars(module).get(part, {}) for part in ("_parameters", "_buffers", "_modules")]
        unsaved = vars(module).get("_non_persistent_buffers_set", set())
        if not all(isinstance(part, Mapping) for part in parts) or not isinstance(unsaved, set):
            raise CheckpointError(f"its module {name!r} does not hold its parts as torch.nn.Module does")
        for key, value in [*parts[0].items(), *parts[1].items()]:
            if value is not None and key not in unsaved:
                state[f"{prefix}{key}"] = value
        waiting += [(f"{prefix}{key}", child) for key, child in parts[2].items() if child is not None]
    return state, classes


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _is_module(name: str) -> bool:
    return name.startswith("torch.nn.modules.") or name.rpartition(".")[2] in ("KAN", "KANLinear")


def _globals(path: Path) -> list[str]:
    """The functions and classes a file names besides those of tensors; none where that cannot be told."""
    import torch

    find = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)  # since torch 2.6
    if find is None or not zipfile.is_zipfile(path):
        return []
    try:
        return sorted(find(path))
    except Exception:  # torch.load then says what is wrong
        return []


@contextlib.contextmanager
def _known(names: list[str]) -> Iterator[None]:
    """Lets torch.load find an empty class of its own under each of these names."""
    import torch

    if not names:
        yield
        return
    stubs: list[Any] = []
    for name in names:
        module, _, last = name.rpartition(".")
        stubs.append(type(last, (Inert,), {"__module__": module, "name": name}))
    with _READING, torch.serialization.safe_globals(stubs):
        yield


def _refusal(path: Path, names: list[str]) -> CheckpointError:
    instead = sorted({_INSTEAD[top] for name in names if (top := name.partition(".")[0]) in _INSTEAD})
    named = ", ".join(ascii(name[:100])[1:-1] for name in names[:4]) + (", …" if len(names) > 4 else "")
    return CheckpointError(
        f"{path} cannot be read: it holds pickled Python objects ({named}), which are never run here. "
        + ", or ".join([_ADVICE, *instead])
    )
