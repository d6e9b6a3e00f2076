"""The class that Triton's Python backend calls: a bundle in this project's own runtime.

`relukan-export --triton REPO --triton-backend python` writes a model.py that imports it from here,
beside a copy of the bundle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .load import load

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """One instance of a model. The names of its methods are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the bundle; an error keeps the version from being served."""
        self.runner = load(Path(args["model_repository"], args["model_version"], "bundle"))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers requests that Triton has joined: x ``(rows, in)`` float32 each, as one batch."""
        import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # there in Triton alone

        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        y = self.runner(np.concatenate(inputs))
        ends = np.cumsum([len(x) for x in inputs])
        return [triton.InferenceResponse([triton.Tensor("y", rows)]) for rows in np.split(y, ends[:-1])]

    def finalize(self) -> None:
        self.runner.close()
