"""What a server counts: for Prometheus, for the protocol's statistics, and for the page.

Where Triton has a name for something, it is Triton's, with its meaning and unit. Batchers and runners
count for themselves, and what they have added is taken over when the store observes its models and
when somebody asks; only the answers are counted one by one.

With several workers each counts into files of a folder that all share, and any of them answers for
all. That is prometheus_client's multiprocess mode, which it takes up if PROMETHEUS_MULTIPROC_DIR is set
when it is imported.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample
from starlette.exceptions import HTTPException

from ...errors import DeadlineExceeded, InputError, QueueFull
from ..batching import BatcherStats
from ..guard import Stats
from .store import Model

__all__ = ["CONTENT_TYPE", "Metrics", "exposition", "shared_registry"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_MODEL = ("model", "version")
_SECONDS = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5)
# Triton's counters do not end in "_total", and prometheus_client's always do.
_TRITON_TOTAL = re.compile(rb"^((?:# \w+ )?nv_\w+)_total\b", re.MULTILINE)
# When each series began, which nobody asks and which doubles the lines.
_CREATED = re.compile(rb"^(# \w+ )?\w+_created[ {].*\n", re.MULTILINE)


@dataclasses.dataclass
class _Taken:
    """How far a model's own counts have been taken over."""

    batcher: BatcherStats
    guard: Stats


class Metrics:
    """The counts of one server, or of one of its workers. Thread-safe.

    Args:
        refresh: called before anything is read, to have every model observed.
    """

    def __init__(self, refresh: Callable[[], None] = lambda: None) -> None:
        self.refresh = refresh
        self._registry = registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._taken: weakref.WeakKeyDictionary[Model, _Taken] = weakref.WeakKeyDictionary()
        self._meters: dict[tuple[str, str], tuple[Any, Any, Any]] = {}

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Any:
            return Counter(name, text, labels, registry=registry)

        self._rows = counter("nv_inference_count", "Rows run", _MODEL)
        self._batches = counter("nv_inference_exec_count", "Batches run", _MODEL)
        self._queue = counter("nv_inference_queue_duration_us", "Time that requests waited", _MODEL)
        self._compute = counter("nv_inference_compute_infer_duration_us", "Time that requests were run for", _MODEL)
        self._success = counter("nv_inference_request_success", "Requests answered", _MODEL)
        self._failure = counter("nv_inference_request_failure", "Requests not answered", (*_MODEL, "reason"))
        self._duration = counter("nv_inference_request_duration_us", "Time that requests took in all", _MODEL)
        self._pending = Gauge(
            "nv_inference_pending_request_count",
            "Rows of requests that wait",
            _MODEL,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._seconds = Histogram(
            "relukan_request_duration_seconds",
            "From the first byte of a request to the last of its answer",
            ("model",),
            registry=registry,
            buckets=_SECONDS,
        )
        feature = ("model", "feature")
        self._outside = counter("relukan_rows_outside_domain", "Rows with this input outside its domain", feature)
        self._nonfinite = counter("relukan_nonfinite_values", "Rows with NaN or infinity in this input", feature)
        self._reloads = counter("relukan_reloads", "Attempts to serve a new version", ("model", "outcome"))
        self._version = Gauge(
            "relukan_model_version",
            "The version served; with several workers, the oldest of theirs",
            ("model",),
            registry=registry,
            multiprocess_mode="livemin",
        )

    def answered(self, name: str, version: str, seconds: float) -> None:
        """Counts a request that this version of a model has answered."""
        success, duration, histogram = self._meters.get((name, version)) or self._begin(name, version)
        success.inc()
        duration.inc(seconds * 1e6)
        histogram.observe(seconds)

    def _begin(self, name: str, version: str) -> tuple[Any, Any, Any]:
        """Lets a version's series begin, each at 0."""
        for outcome in ("success", "failure"):
            self._reloads.labels(name, outcome)
        meters = self._success.labels(name, version), self._duration.labels(name, version), self._seconds.labels(name)
        self._meters[name, version] = meters
        return meters

    def failed(self, name: str, version: str, error: BaseException) -> None:
        """Counts a request that a model was asked, and has not answered."""
        if isinstance(error, (QueueFull, DeadlineExceeded)):
            reason = "REJECTED"
        elif isinstance(error, asyncio.CancelledError):
            reason = "CANCELED"
        else:
            told = isinstance(error, HTTPException) and error.status_code < 500
            reason = "OTHER" if told or isinstance(error, InputError) else "BACKEND"
        self._failure.labels(name, version, reason).inc()

    def observe(self, model: Model) -> None:
        """Takes over what the model has counted since the last time."""
        with self._lock:
            now = _Taken(model.batcher.stats(), model.runner.stats())
            before = self._taken.get(model)
            self._taken[model] = now
            if before is None:
                self._begin(model.name, model.version)
                self._version.labels(model.name).set(model.manifest.version)
                unasked = (0,) * model.manifest.in_features
                before = _Taken(BatcherStats(), Stats(0, unasked, unasked))
            self._take_batcher((model.name, model.version), now.batcher, before.batcher)
            self._take_guard(model, now.guard, before.guard)

    def _take_batcher(self, labels: tuple[str, str], now: BatcherStats, before: BatcherStats) -> None:
        batches = now.batches - before.batches
        # A batch runs for each of its requests, and Triton's time is that of requests.
        requests_per_batch = (now.requests - before.requests) / max(batches, 1)
        self._rows.labels(*labels).inc(now.rows - before.rows)
        self._batches.labels(*labels).inc(batches)
        self._queue.labels(*labels).inc((now.queue_seconds - before.queue_seconds) * 1e6)
        self._compute.labels(*labels).inc((now.run_seconds - before.run_seconds) * requests_per_batch * 1e6)
        self._pending.labels(*labels).set(now.pending)

    def _take_guard(self, model: Model, now: Stats, before: Stats) -> None:
        names = model.manifest.input_names
        for counter, counts, counted in (
            (self._outside, now.outside, before.outside),
            (self._nonfinite, now.nonfinite, before.nonfinite),
        ):
            for feature, new, old in zip(names, counts, counted, strict=True):
                counter.labels(model.name, feature).inc(new - old)

    def reloaded(self, name: str, succeeded: bool) -> None:
        """Counts an attempt to replace a model."""
        self._reloads.labels(name, "success" if succeeded else "failure").inc()

    def exposition(self) -> bytes:
        """Everything, as Prometheus reads it."""
        self.refresh()
        return exposition(_readable(self._registry))

    def samples(self) -> list[Sample]:
        """Every count there is, of all workers together; the names of counters end in "_total"."""
        self.refresh()
        families = _readable(self._registry).collect()
        return [each for family in families for each in family.samples if not each.name.endswith("_created")]

    def totals(self) -> dict[tuple[str, str], dict[str, float]]:
        """For each model and version what the counters with Triton's names say, of all workers together."""
        totals: dict[tuple[str, str], dict[str, float]] = {}
        for sample in self.samples():
            if sample.name.startswith("nv_"):
                of_model = totals.setdefault((sample.labels["model"], sample.labels["version"]), {})
                name = sample.name.removesuffix("_total")
                of_model[name] = of_model.get(name, 0) + sample.value  # over the reasons of failures
        return totals


def exposition(registry: CollectorRegistry) -> bytes:
    """A registry in Prometheus's text format, with Triton's names as Triton writes them."""
    return _TRITON_TOTAL.sub(rb"\1", _CREATED.sub(b"", generate_latest(registry)))


def shared_registry(folder: str) -> CollectorRegistry:
    """What all workers together have counted into a folder."""
    registry = CollectorRegistry()
    registry.register(_Filled(registry=None, path=folder))  # type: ignore[no-untyped-call]
    return registry


class _Filled(MultiProcessCollector):
    """Without the files that a worker has just made and not filled yet, which cannot be read."""

    def collect(self) -> Any:
        files = [file for file in Path(self._path).glob("*.db") if file.stat().st_size]
        return self.merge([str(file) for file in files], accumulate=True)  # type: ignore[no-untyped-call]


def _readable(registry: CollectorRegistry) -> CollectorRegistry:
    """The registry to read: this process's own, or that of all workers."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return shared_registry(folder) if folder else registry
