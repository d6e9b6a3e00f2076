"""The page for people at ``/``, and ``/status``, what it shows as JSON.

The page is one file without anything from elsewhere. Its security policy admits its own script and
style by their hashes, requests to this server, and nothing else; so a model's or a column's name cannot
become code, whatever it holds.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from prometheus_client.samples import Sample
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ... import __version__
from .metrics import Metrics
from .store import Model, Store

__all__ = ["read_status", "routes"]

_PAGE = Path(__file__).with_name("page.html")


def routes(store: Store, metrics: Metrics) -> list[Route]:
    """The page, and the status that it asks for."""
    content = _PAGE.read_bytes()
    headers = {
        "content-security-policy": _policy(content.decode()),
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }

    async def page(request: Request) -> Response:
        return Response(content, headers=headers, media_type="text/html")

    async def status(request: Request) -> Response:
        body = orjson.dumps(await run_in_threadpool(read_status, store, metrics))
        return Response(body, headers={"cache-control": "no-store"}, media_type="application/json")

    return [Route("/", page), Route("/status", status)]


def _policy(page: str) -> str:
    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def read_status(store: Store, metrics: Metrics) -> dict[str, Any]:
    """What is served and how it has fared, of all workers together; a model still being opened has but a name."""
    samples: dict[str, list[Sample]] = {}
    for sample in metrics.samples():
        samples.setdefault(sample.labels["model"], []).append(sample)
    opened = {model.name: model for model in store.models()}
    return {
        "server": {"version": __version__, "ready": store.ready()},
        "models": [
            {
                "name": name,
                "ready": store.ready(name),
                **(_meaning(opened[name]) | _counts(opened[name], samples.get(name, [])) if name in opened else {}),
            }
            for name in store.names()
        ],
    }


def _meaning(model: Model) -> dict[str, Any]:
    manifest, artifact = model.manifest, model.runner.artifact
    return {
        "version": model.version,
        "created": manifest.created,
        "task": manifest.task,
        "widths": manifest.widths,
        "columns": manifest.input_names,
        "outputs": manifest.labels or manifest.targets or [f"y{index}" for index in range(manifest.out_features)],
        "target": manifest.targets[0] if manifest.targets else None,
        "domain": manifest.domain,
        "backend": model.runner.backend,
        "file": artifact.file,
        "precision": artifact.precision,
    }


def _counts(model: Model, samples: Sequence[Sample]) -> dict[str, Any]:
    """The counts of a model, all its versions together, since the server began."""

    def by(label: str, name: str) -> dict[str, int]:
        values: dict[str, int] = {}
        for sample in samples:
            if sample.name == name:
                key = sample.labels[label]
                values[key] = values.get(key, 0) + round(sample.value)
        return values

    def total(name: str) -> int:
        return sum(by("model", name).values())

    def features(name: str) -> list[int]:
        values = by("feature", name)
        names = model.manifest.input_names
        return [values.get(each, 0) for each in names]

    return {
        "requests": total("nv_inference_request_success_total"),
        "failures": by("reason", "nv_inference_request_failure_total"),
        "reloads": by("outcome", "relukan_reloads_total"),
        "rows": total("nv_inference_count_total"),
        "batches": total("nv_inference_exec_count_total"),
        "outside": features("relukan_rows_outside_domain_total"),
        "nonfinite": features("relukan_nonfinite_values_total"),
        "latency": _histogram(by("le", "relukan_request_duration_seconds_bucket")),
    }


def _histogram(cumulative: dict[str, int]) -> dict[str, list[Any]]:
    """The bounds of the buckets in seconds, and the count of each; the last bucket has no bound."""
    ordered = sorted((float(bound), count) for bound, count in cumulative.items())
    counts = [0, *(count for _, count in ordered)]
    return {
        "bounds": [bound for bound, _ in ordered if not math.isinf(bound)],
        "counts": [count - before for before, count in itertools.pairwise(counts)],
    }
