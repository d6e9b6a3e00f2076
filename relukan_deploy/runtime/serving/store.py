"""The models that are served: bundles, opened and batched, and replaced when a new version is there.

A `Model` never changes. A new version of its bundle is opened beside it, answers its golden inputs,
and takes its place as a whole; then the old one answers what it has accepted, and is closed. Plain
threads, so that a store serves whoever calls it, from any event loop or from none.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, Protocol


from ...bundle import Bundle, Manifest, open_bundle
from ...errors import InputError, NotReady, RelukanError, ServiceClosed, UnknownModel
from ..batching import Batcher
from ..guard import Nonfinite, OutOfDomain
from ..load import load
from ..runner import Rows, Runner

__all__ = ["Answer", "Model", "Observer", "Options", "Store", "by_name"]

logger = logging.getLogger("relukan_deploy.serving")

# What a folder's files were like: of each its name, and what changes when it is written or replaced.
Signature = tuple[tuple[str, int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Options:
    """How every bundle is opened and batched; see `relukan_deploy.load` and `Batcher`."""

    backend: str = "auto"
    threads: int | Literal["auto"] = 1
    max_batch: int = 1024
    max_delay: float = 0.0
    max_queue: int = 65536
    out_of_domain: OutOfDomain = "count"
    nonfinite: Nonfinite = "count"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """One version of one bundle, ready to answer.

    Attributes:
        name: under which it is served.
        version: the manifest's, which every export raises by one.
        manifest: of its bundle.
        runner: what answers.
        batcher: what joins the requests for it.
    """

    name: str
    version: str
    manifest: Manifest
    runner: Runner
    batcher: Batcher

    def close(self) -> None:
        """Answers what was accepted, and frees the network."""
        self.batcher.close(drain=True)
        self.runner.close()


class Answer(NamedTuple):
    """An answer ``(rows, out)``, and the model that gave it."""

    model: Model
    y: Rows


class Observer(Protocol):
    """Who wants to know how the models are doing. Called from any thread."""

    def observe(self, model: Model) -> None:
        """Called with every open model now and then, and with a replaced one after its last answer."""

    def reloaded(self, name: str, succeeded: bool) -> None:
        """Called after each attempt to replace a model by a new version."""


class Store:
    """Keeps the newest version of some bundles open.

    Args:
        bundles: the folders by the names under which they are served. A bundle that is open already
            is served as it is: nothing looks for new versions of it.
        options: how they are opened.
        poll_seconds: how often to look for new versions.
        observer: who is told.

    Raises:
        InputError: a name cannot be part of a URL's path, there is none, or the pause is not positive.
    """

    def __init__(
        self,
        bundles: Mapping[str, str | Path | Bundle],
        options: Options | None = None,
        *,
        poll_seconds: float = 1.0,
        observer: Observer | None = None,
    ) -> None:
        if not bundles:
            raise InputError("there is no bundle to serve: name at least one")
        for name in bundles:
            # "stats" is where the protocol has the statistics of all models.
            if not name or "/" in name or not name.isprintable() or name == "stats":
                raise InputError(f"{name!r} cannot be the name of a model in a URL: give it another name")
        if not poll_seconds > 0:
            raise InputError(f"poll_seconds must be greater than 0, got {poll_seconds}")
        self.options = options or Options()
        self._sources = by_name(bundles)
        self._models: dict[str, Model] = {}
        self._seen: dict[str, Signature | None] = {}
        self._died: set[str] = set()  # models whose batcher has died, to be opened anew
        self._replacing = threading.Lock()
        self._observer = observer
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(poll_seconds,), name="relukan-store", daemon=True)

    def open(self) -> None:
        """Opens every bundle, and begins to look for new versions.

        Raises:
            RelukanError: what `relukan_deploy.load` raises for the first that cannot be served.
            ServiceClosed: `close` was called meanwhile.
        """
        try:
            for name, source in self._sources.items():
                self._require_not_closed()
                self._seen[name] = _signature(source)
                self._models[name] = self._open(name, open_bundle(source))
            self._require_not_closed()
        except BaseException:
            self.close()
            raise
        self._watcher.start()

    def names(self) -> tuple[str, ...]:
        return tuple(self._sources)

    def models(self) -> list[Model]:
        """Those that are ready, each in its newest version."""
        return list(self._models.values())

    def get(self, name: str, version: str | None = None) -> Model:
        """The model of this name; no version, or "", is the newest, and no other is kept.

        Raises:
            UnknownModel: it is not served here, or not in this version.
            NotReady: it is still being opened.
        """
        model = self._models.get(name)
        if model is None:
            if name in self._sources:
                raise NotReady(f"model {name!r} is still being opened: ask again in a moment")
            raise UnknownModel(f"there is no model {name!r}: {', '.join(map(repr, self._sources))} is served here")
        if version and version != model.version:
            raise UnknownModel(f"model {name!r} has no version {version!r}: version {model.version} is served here")
        return model

    def ready(self, name: str | None = None, version: str | None = None) -> bool:
        """Whether there is this model, in this version, and it answers; without a name, whether all do."""
        if self._stop.is_set():
            return False
        if name is None:
            return len(self._models) == len(self._sources) and not self._died
        try:
            self.get(name, version)
        except (NotReady, UnknownModel):
            return False
        return name not in self._died

    async def infer(self, model: Model, x: Rows, *, version: str | None = None, timeout: float | None = None) -> Answer:
        """Has a model that `get` gave answer x ``(rows, in)``, or its successor if it has just been replaced.

        Raises:
            RelukanError: what `Batcher` raises; UnknownModel if it was replaced and `version` was given.
        """
        while True:
            try:
                return Answer(model, await model.batcher(x, timeout=timeout))
            except ServiceClosed:
                successor = self.get(model.name, version)
                if successor is model:  # not replaced, so all is closed, or its batcher has died
                    self._died.add(model.name)
                    raise
                model = successor

    def reload(self, name: str) -> bool:
        """Looks for a new version of a model now. Gives whether there was one, and if so, serves it.

        Raises:
            UnknownModel: it is not served here.
            InputError: it was given as a bundle that was open already.
            RelukanError: what is there cannot be served, and the model stays as it is; or all is closed.
        """
        self.get(name)
        source = self._sources[name]
        if isinstance(source, Bundle):
            raise InputError(
                f"{name!r} was given as an opened bundle, not as a folder to look into: start anew to serve another"
            )
        return self._replace(name, _signature(source))

    def observe(self) -> None:
        """Tells the observer about every model."""
        if self._observer is not None:
            for model in self.models():
                self._observer.observe(model)

    def close(self) -> None:
        """Answers what was accepted, and closes every model. Closing it again does nothing."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        with self._replacing:
            for model in self.models():
                self._retire(model)

    def _require_not_closed(self) -> None:
        if self._stop.is_set():
            raise ServiceClosed("the server is being shut down")

    def _open(self, name: str, bundle: Bundle) -> Model:
        options = self.options
        runner = load(
            bundle,
            backend=options.backend,
            threads=options.threads,
            out_of_domain=options.out_of_domain,
            nonfinite=options.nonfinite,
        )
        try:
            batcher = Batcher(
                runner, max_batch=options.max_batch, max_delay=options.max_delay, max_queue=options.max_queue
            )
        except BaseException:
            runner.close()
            raise
        return Model(name, str(bundle.manifest.version), bundle.manifest, runner, batcher)

    def _retire(self, model: Model) -> None:
        model.close()
        if self._observer is not None:
            self._observer.observe(model)

    def _watch(self, poll_seconds: float) -> None:
        while not self._stop.wait(poll_seconds):
            for name, source in self._sources.items():
                signature = _signature(source)
                if signature is None or (signature == self._seen[name] and name not in self._died):
                    continue  # nothing new, or the folder is just being replaced
                try:
                    self._replace(name, signature)
                except Exception as error:
                    # Whatever is wrong with the new version, the old one goes on answering.
                    logger.warning(
                        "%s: version %s stays, the new one cannot be served: %s",
                        name,
                        self._models[name].version,
                        error,
                        exc_info=not isinstance(error, RelukanError),
                    )
            try:
                self.observe()
            except Exception:  # nobody may stop the search for new versions
                logger.exception("the models could not be observed")

    def _replace(self, name: str, signature: Signature | None) -> bool:
        """Opens what is in the folder now, and puts it in the place of the model unless it is the same."""
        with self._replacing:
            self._require_not_closed()
            self._seen[name] = signature  # a version that fails is tried again when a file has changed
            old = self._models[name]
            try:
                bundle = open_bundle(self._sources[name])
                if bundle.manifest == old.manifest and name not in self._died:
                    return False
                new = self._open(name, bundle)
            except Exception:
                if self._observer is not None:
                    self._observer.reloaded(name, False)
                raise
            self._models[name] = new
            self._died.discard(name)
        logger.info("%s: version %s is served, on %s", name, new.version, new.runner.backend)
        if self._observer is not None:
            self._observer.reloaded(name, True)
        self._retire(old)
        return True


def _signature(source: Path | Bundle) -> Signature | None:
    """What changes when any file in the folder is written or replaced; None where there is no folder."""
    if isinstance(source, Bundle):
        return ()
    try:
        with os.scandir(source) as entries:
            stats = sorted((entry.name, _stat(entry)) for entry in entries)
    except OSError:
        return None
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _stat(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)  # a link that leads nowhere


def by_name(bundles: str | Path | Bundle | Mapping[str, str | Path | Bundle]) -> dict[str, Path | Bundle]:
    """Bundles by the names under which they are served; a single one has its folder's name."""
    if not isinstance(bundles, Mapping):
        path = bundles.path if isinstance(bundles, Bundle) else bundles
        bundles = {Path(os.path.abspath(path)).name: bundles}  # not resolved: a link is named as it is seen
    return {name: source if isinstance(source, Bundle) else Path(source) for name, source in bundles.items()}
