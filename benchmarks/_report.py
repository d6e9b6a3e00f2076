"""What the scripts share around their measurements: the header, the JSON file, one run of a graph."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from relukan_deploy.bench.timing import Timing

__all__ = ["bound_call", "figures", "header", "micro", "new_console", "print_header", "write_json"]


def header(script: str, packages: Sequence[str]) -> dict[str, Any]:
    """The machine, the versions and the command of this run."""
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{script}", *sys.argv[1:]]),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "architecture": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }


def new_console() -> Console:
    """A terminal, or 120 columns of text where the output is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def print_header(console: Console, values: dict[str, Any]) -> None:
    machine, versions = values["machine"], values["versions"]
    console.print(f"[bold]{values['command']}[/bold]")
    console.print(f"{machine['processor']}, {machine['cores']} cores, {machine['architecture']}, {machine['system']}")
    console.print(", ".join(f"{name} {version}" for name, version in versions.items()))


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(values), indent=1) + "\n", encoding="utf-8")


def figures(timing: Timing) -> dict[str, Any]:
    """A contender's times, as they are written: without those of each round."""
    return {name: value for name, value in dataclasses.asdict(timing).items() if name != "rounds"}


def micro(seconds: float) -> str:
    """Seconds as µs, with three digits."""
    value = seconds * 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def bound_call(session: Any, x: NDArray[np.float32], shape: Sequence[int]) -> Callable[[], NDArray[np.float32]]:
    """One run of a graph on x, with its input and output in place: the graph alone, no copies in Python.

    Args:
        session: of ONNX Runtime, with one input "x" and one output "y".
        x: the input, in the graph's layout.
        shape: of the output.
    """
    import onnxruntime

    binding = session.io_binding()
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    y = np.empty(shape, np.float32)
    held = value(x), value(y)
    binding.bind_ortvalue_input("x", held[0])
    binding.bind_ortvalue_output("y", held[1])

    def run(_alive: object = (x, held)) -> NDArray[np.float32]:  # the binding holds addresses alone
        session.run_with_iobinding(binding)
        return y

    return run


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _rounded(value: Any) -> Any:
    """The same value with floats cut to four digits: more would be noise, and long."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value
