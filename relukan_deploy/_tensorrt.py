"""What building and running engines share: importing a TensorRT, and a logger that keeps errors."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any, Literal

from .errors import MissingDependencyError

__all__ = ["Flavour", "import_tensorrt", "make_logger"]

Flavour = Literal["tensorrt", "tensorrt-rtx"]

_PACKAGES: dict[Flavour, tuple[str, str]] = {"tensorrt": ("tensorrt", "trt"), "tensorrt-rtx": ("tensorrt_rtx", "rtx")}


def import_tensorrt(flavour: Flavour, purpose: str) -> ModuleType:
    """The module of a flavour.

    Raises:
        MissingDependencyError: it is not installed, or only its empty placeholder is.
    """
    package, extra = _PACKAGES[flavour]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(purpose, package, extra) from error
    if not hasattr(module, "Runtime"):
        raise MissingDependencyError(purpose, package, extra)
    return module


def make_logger(trt: ModuleType) -> Any:
    """A TensorRT logger that says nothing and keeps the errors, for the message of an exception."""

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)

    return Logger()
