"""Every error this package raises on purpose.

    RelukanError                      exit code 1
    ├── InputError                    2   what was given cannot be used
    │   ├── TableError                    a data file, or a row or column of it
    │   ├── CheckpointError               a model file
    │   └── BundleError                   a bundle folder, or a file in it
    ├── ParityError                   3   an artifact does not compute the reference function
    ├── MissingDependencyError        4   a package is not installed
    ├── MissingDeviceError            4   a GPU or its driver is not there
    ├── BuildError                    1   TensorRT refused or failed to build
    ├── QueueFull                     1   a request would not fit into the queue; ask again later
    ├── DeadlineExceeded              1   a request's time was up before it was answered
    ├── NotReady                      1   a server is still opening the model; ask again in a moment
    └── ServiceClosed                 1   what would answer has been closed, or has died

Commands print the message alone and leave with the exit code; tracebacks are for errors that
are not in this tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

__all__ = [
    "BuildError",
    "BundleError",
    "CheckpointError",
    "DeadlineExceeded",
    "InputError",
    "MissingDependencyError",
    "MissingDeviceError",
    "NotReady",
    "ParityError",
    "QueueFull",
    "RelukanError",
    "ServiceClosed",
    "TableError",
    "UnknownModel",
]


class RelukanError(Exception):
    """Base of every error in this package."""

    exit_code: ClassVar[int] = 1


class InputError(RelukanError, ValueError):
    """A value, an array or an option that cannot be used."""

    exit_code = 2


class TableError(InputError):
    """A data file that cannot be read, or a row or column of it that cannot be used."""


class CheckpointError(InputError):
    """A model file that is not a ReLU-KAN checkpoint, or is damaged."""


class BundleError(InputError):
    """A bundle folder that is incomplete, damaged, or of another version."""


class UnknownModel(InputError):  # noqa: N818  it is the caller who errs
    """A model, or a version of one, that is not served here."""


class ParityError(RelukanError):
    """An artifact's answers differ from the float64 reference by more than the tolerance.

    Attributes:
        checks: everything that was compared, the artifact at fault included.
    """

    exit_code = 3
    checks: Sequence[Any] = ()


class MissingDependencyError(RelukanError, ImportError):
    """A package that this operation needs is not installed.

    Args:
        purpose: what was asked for, as the start of a sentence ("Exporting to ONNX").
        package: the package that could not be imported.
        extra: the extra of this project that installs it.
    """

    exit_code = 4

    def __init__(self, purpose: str, package: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'relukan-deploy[{extra}]'"
        )


class MissingDeviceError(RelukanError):
    """A GPU, or its driver, is needed and not there."""

    exit_code = 4


class BuildError(RelukanError):
    """TensorRT could not parse the graph or build the engine."""


class QueueFull(RelukanError):  # noqa: N818  named as queue.Full is: it is a state, not a fault
    """A request was turned away at once because too many rows are waiting."""


class DeadlineExceeded(RelukanError, TimeoutError):  # noqa: N818
    """A request's time was up before it was answered."""


class NotReady(RelukanError):  # noqa: N818  a state, not a fault
    """A model that is still being opened."""


class ServiceClosed(RelukanError):  # noqa: N818
    """A request came after the end, or what should have answered it has died."""
