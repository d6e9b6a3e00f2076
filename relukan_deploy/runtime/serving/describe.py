"""What the Open Inference Protocol's descriptions say of a server and its models, as plain dicts.

The field names and values are those of Triton's HTTP API, which are also those of its protobuf
messages; so both transports use them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ... import __version__
from .oip import INPUT, OUTPUT
from .store import Model, Options, Store

__all__ = ["LOAD_TAKES_NOTHING", "load_failure", "model_config", "model_metadata", "model_statistics", "repository_index", "server_metadata", "unload_refusal"]

LOAD_TAKES_NOTHING = "a bundle is served as it is: send no config and no files with a request to load it"

# Those whose endpoints are there and do something. "schedule_policy" is the request's timeout.
_EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
_PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan", "tensorrt-rtx": "tensorrt_plan"}


def server_metadata() -> dict[str, Any]:
    return {"name": "relukan-deploy", "version": __version__, "extensions": list(_EXTENSIONS)}


def model_metadata(model: Model) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": _PLATFORMS[model.runner.artifact.kind],
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, manifest.in_features]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, manifest.out_features]}],
    }


def model_config(model: Model, options: Options) -> dict[str, Any]:
    """Triton's model configuration; the rows of a request are its batch, which the dims leave out.

    Under "parameters" it says what a row means, each as JSON: the task, and the names that there are.
    """
    manifest = model.manifest
    meaning = {name: getattr(manifest, name) for name in ("task", "columns", "targets", "labels")}
    return {
        "name": model.name,
        "platform": _PLATFORMS[model.runner.artifact.kind],
        "backend": model.runner.backend,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": options.max_batch,
        "input": [{"name": INPUT, "data_type": "TYPE_FP32", "dims": [manifest.in_features]}],
        "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [manifest.out_features]}],
        "dynamic_batching": {"max_queue_delay_microseconds": round(options.max_delay * 1e6)},
        "parameters": {name: {"string_value": json.dumps(value)} for name, value in meaning.items() if value},
    }


def model_statistics(model: Model, totals: Mapping[str, float]) -> dict[str, Any]:
    """Triton's statistics of a model, from what `Metrics.totals` gives for it.

    Reading and writing of requests is not timed apart, so that compute_input and compute_output are 0.
    """

    def duration(count: str, microseconds: str | None = None) -> dict[str, int]:
        return {
            "count": round(totals.get(count, 0)),
            "ns": round(totals.get(microseconds, 0) * 1e3) if microseconds else 0,
        }

    success = "nv_inference_request_success"
    return {
        "name": model.name,
        "version": model.version,
        "inference_count": round(totals.get("nv_inference_count", 0)),
        "execution_count": round(totals.get("nv_inference_exec_count", 0)),
        "inference_stats": {
            "success": duration(success, "nv_inference_request_duration_us"),
            "fail": duration("nv_inference_request_failure"),
            "queue": duration(success, "nv_inference_queue_duration_us"),
            "compute_input": duration(success),
            "compute_infer": duration(success, "nv_inference_compute_infer_duration_us"),
            "compute_output": duration(success),
        },
        "batch_stats": [],
    }


def repository_index(store: Store, *, ready: bool = False) -> list[dict[str, str]]:
    """The state of every model; only of those that answer where `ready`."""
    models = {model.name: model for model in store.models()}
    index = []
    for name in store.names():
        if name in models:
            index.append({"name": name, "version": models[name].version, "state": "READY", "reason": ""})
        elif not ready:
            index.append({"name": name, "version": "", "state": "LOADING", "reason": "its bundle is being opened"})
    return index


def load_failure(name: str, error: Exception) -> str:
    """What is said where a new version was looked for, and cannot be served."""
    return f"the new version of model {name!r} cannot be served: {error}"


def unload_refusal(name: str) -> str:
    """What is said to who wants a model to be unloaded."""
    return f"model {name!r} is served as long as the server runs: end the server instead"
