"""Stands in for Triton's backend "onnxruntime", which the wheel that has tritonserver lacks.

It serves the same repository: config.pbtxt is read, checked and acted upon by the real server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton  # type: ignore[import-not-found]


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        return config

    def initialize(self, args: dict[str, str]) -> None:
        model = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        inputs = [triton.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        (y,) = self.session.run(["y"], {"x": np.concatenate(inputs)})
        ends = np.cumsum([len(x) for x in inputs])
        return [triton.InferenceResponse([triton.Tensor("y", rows)]) for rows in np.split(y, ends[:-1])]
