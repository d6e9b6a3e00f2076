"""relukan-deploy: from a trained ReLU-KAN to a verified four-operator ONNX graph and TensorRT engine.

Each name below is imported when it is first used, so importing the package costs next to nothing
and needs neither torch, onnx nor tensorrt.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import export, verify
    from .checkpoint import load_checkpoint, save
    from .model import ReLUKAN, ReLUKANLayer
    from .plotting import plot, plot_history
    from .pruning import prune
    from .refinement import refine
    from .runtime.load import load
    from .train import fit

__all__ = [
    "ReLUKAN",
    "ReLUKANLayer",
    "__version__",
    "export",
    "fit",
    "load",
    "load_checkpoint",
    "plot",
    "plot_history",
    "prune",
    "refine",
    "save",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "ReLUKAN": "model",
    "ReLUKANLayer": "model",
    "export": "api",
    "fit": "train",
    "load": "runtime",
    "load_checkpoint": "checkpoint",
    "plot": "plotting",
    "plot_history": "plotting",
    "prune": "pruning",
    "refine": "refinement",
    "save": "checkpoint",
    "verify": "api",
}
# Names that need torch as soon as their module is imported.
_NEEDS_TORCH = {"ReLUKAN", "ReLUKANLayer", "fit", "prune", "refine"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f".{home}", __name__), name)
    except ModuleNotFoundError as error:
        if name in _NEEDS_TORCH and error.name == "torch":
            from .errors import MissingDependencyError

            raise MissingDependencyError(f"relukan_deploy.{name}", "torch", "train") from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
