"""Models and their versions: what is served, and when it is replaced."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving_tools import Network, some_rows, wait_until

from relukan_deploy.bundle import open_bundle
from relukan_deploy.errors import (
    BundleError,
    InputError,
    NotReady,
    QueueFull,
    RelukanError,
    ServiceClosed,
    UnknownModel,
)
from relukan_deploy.runtime.serving.store import Model, Options, Store, by_name
from relukan_deploy.spec import KanSpec

Log = pytest.LogCaptureFixture
X = some_rows(2, 3)


class Watch:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.reloads: list[bool] = []

    def observe(self, model: Model) -> None:
        self.rows[model.version] = model.batcher.stats().rows

    def reloaded(self, name: str, succeeded: bool) -> None:
        self.reloads.append(succeeded)


@pytest.fixture
def network(tmp_path: Path, make_spec: Callable[..., KanSpec]) -> Network:
    return Network(tmp_path / "ferns", make_spec)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def store(network: Network, watch: Watch) -> Iterator[Store]:
    """A store with one model, ferns, that looks for new versions all the time."""
    store = Store({"ferns": network.path}, poll_seconds=0.01, observer=watch)
    store.open()
    yield store
    store.close()


@pytest.fixture
def calm(network: Network, watch: Watch) -> Iterator[Store]:
    """A store with one model, ferns, that never looks by itself."""
    store = Store({"ferns": network.path}, poll_seconds=1e6, observer=watch)
    store.open()
    yield store
    store.close()


def version(store: Store) -> str:
    return store.get("ferns").version


def put(content: bytes, path: Path) -> None:
    """Writes a file in one step, so that nobody sees it half written."""
    aside = path.parent.with_name("aside")
    aside.write_bytes(content)
    aside.replace(path)


def check(store: Store, network: Network) -> None:
    """Fails unless the store's newest version answers as it should."""
    model = store.get("ferns")
    network.check(model.version, X, model.batcher.submit(X).result())


def kill(store: Store, model: Model) -> None:
    """Has the model's batcher die, and the store notice."""

    def die(rows: object) -> None:
        raise SystemExit  # no Exception, which would be the answer

    model.runner.run = die  # type: ignore[assignment, method-assign]
    with pytest.raises(ServiceClosed):
        model.batcher.submit(X).result(timeout=30)
    with pytest.raises(ServiceClosed):
        asyncio.run(store.infer(model, X))


# --- what is served


def test_a_model_has_the_version_of_its_bundle(calm: Store, network: Network) -> None:
    assert version(calm) == "1"
    check(calm, network)


def test_a_version_can_be_named(calm: Store) -> None:
    assert calm.get("ferns", "1") is calm.get("ferns", "") is calm.get("ferns")


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("moss", None, "there is no model 'moss': 'ferns' is served here"),
        ("ferns", "2", "model 'ferns' has no version '2': version 1 is served here"),
    ],
)
def test_what_is_not_there_is_told_what_is(calm: Store, name: str, version: str | None, message: str) -> None:
    with pytest.raises(UnknownModel, match=message):
        calm.get(name, version)
    assert not calm.ready(name, version)


def test_nothing_is_ready_before_it_is_opened(network: Network) -> None:
    store = Store({"ferns": network.path})
    assert not store.ready()
    assert not store.ready("ferns")
    with pytest.raises(NotReady, match="'ferns' is still being opened"):
        store.get("ferns")


def test_all_are_ready_when_each_is(network: Network, bundle_path: Path) -> None:
    store = Store({"ferns": network.path, "other": bundle_path})
    store.open()
    assert store.ready()
    store.close()
    assert not store.ready()


def test_one_that_cannot_be_opened_closes_all(network: Network, tmp_path: Path) -> None:
    store = Store({"ferns": network.path, "nothing": tmp_path / "nothing"})
    with pytest.raises(BundleError, match="nothing is not a bundle"):
        store.open()
    with pytest.raises(ServiceClosed):
        store.get("ferns").batcher.submit(X)


def test_options_reach_the_batcher_and_the_runner(network: Network) -> None:
    store = Store({"ferns": network.path}, Options(max_queue=2, max_delay=100.0, nonfinite="raise"))
    store.open()
    batcher = store.get("ferns").batcher
    waiting = batcher.submit(X)
    with pytest.raises(QueueFull):
        batcher.submit(X)
    with pytest.raises(InputError, match="finite"):
        batcher.submit(X * float("nan"))
    store.close()
    network.check("1", X, waiting.result())


@pytest.mark.parametrize("name", ["", "a/b", "stats", "a\nb", "\ud800"])
def test_a_name_that_no_url_can_hold_is_refused(name: str, network: Network) -> None:
    with pytest.raises(InputError, match="cannot be the name of a model in a URL"):
        Store({name: network.path})


def test_no_bundle_is_refused() -> None:
    with pytest.raises(InputError, match="there is no bundle to serve"):
        Store({})


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_pause_that_cannot_be_is_refused(seconds: float, network: Network) -> None:
    with pytest.raises(InputError, match="poll_seconds must be greater than 0"):
        Store({"ferns": network.path}, poll_seconds=seconds)


def test_a_path_alone_is_served_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v3").mkdir()
    (tmp_path / "current").symlink_to("v3")
    monkeypatch.chdir(tmp_path / "v3")
    assert list(by_name(tmp_path / "current")) == ["current"]
    assert list(by_name(".")) == ["v3"]
    assert by_name({"a": "b"}) == {"a": Path("b")}


def test_an_opened_bundle_alone_is_served_under_its_folders_name(bundle_path: Path) -> None:
    bundle = open_bundle(bundle_path)
    assert by_name(bundle) == {"bundle": bundle}


# --- new versions


def test_a_new_version_takes_the_place_of_the_old(store: Store, network: Network, watch: Watch) -> None:
    for expected in ("2", "3"):
        network.export()
        wait_until(lambda expected=expected: version(store) == expected)
        check(store, network)
    assert watch.reloads == [True, True]


def test_the_old_version_answers_what_it_has_accepted(network: Network, watch: Watch) -> None:
    store = Store({"ferns": network.path}, Options(max_delay=100.0), poll_seconds=1e6, observer=watch)
    store.open()
    waiting = store.get("ferns").batcher.submit(X)
    network.export()
    assert store.reload("ferns")
    network.check("1", X, waiting.result(timeout=0))
    assert watch.rows["1"] == 2
    store.close()


def test_who_got_the_old_version_too_late_is_answered_by_the_new(calm: Store, network: Network) -> None:
    old = calm.get("ferns")
    network.export()
    calm.reload("ferns")
    answer = asyncio.run(calm.infer(old, X))
    assert answer.model.version == "2"
    network.check("2", X, answer.y)


def test_who_asked_for_the_old_version_too_late_is_told(calm: Store, network: Network) -> None:
    old = calm.get("ferns")
    network.export()
    calm.reload("ferns")
    with pytest.raises(UnknownModel, match="no version '1': version 2"):
        asyncio.run(calm.infer(old, X, version="1"))


def test_a_link_that_leads_nowhere_hides_nothing_new(store: Store, network: Network, watch: Watch) -> None:
    (network.path / "notes").symlink_to("nowhere")
    (network.path / "model.onnx").write_bytes(b"damaged")
    wait_until(lambda: watch.reloads == [False])


def test_files_that_were_only_touched_are_no_new_version(store: Store, network: Network, watch: Watch) -> None:
    before = store.get("ferns")
    os.utime(network.path / "manifest.json")
    network.export()  # so that the watcher has certainly looked
    wait_until(lambda: version(store) == "2")
    assert watch.reloads == [True]
    assert before.version == "1"


def test_nothing_new_is_no_reload(calm: Store, watch: Watch) -> None:
    before = calm.get("ferns")
    assert not calm.reload("ferns")
    assert calm.get("ferns") is before
    assert watch.reloads == []


def test_a_version_that_cannot_be_served_leaves_the_old_one(
    store: Store, network: Network, watch: Watch, caplog: Log
) -> None:
    with caplog.at_level(logging.WARNING, "relukan_deploy.serving"):
        (network.path / "model.onnx").write_bytes(b"damaged")
        wait_until(lambda: watch.reloads)
        asyncio.run(asyncio.sleep(0.2))  # some more looks
    assert watch.reloads == [False]  # and not tried again
    (record,) = caplog.records
    assert "ferns: version 1 stays, the new one cannot be served: " in record.getMessage()
    assert "has changed since it was written" in record.getMessage()
    assert not record.exc_info
    check(store, network)


def test_a_version_that_is_copied_file_by_file_is_served_when_it_is_complete(
    store: Store, network: Network, tmp_path: Path, make_spec: Callable[..., KanSpec], watch: Watch
) -> None:
    other = Network(tmp_path / "elsewhere", make_spec)
    other.export()
    for name in ("golden.npz", "manifest.json", "model.onnx"):
        seen = len(watch.reloads)
        put((other.path / name).read_bytes(), network.path / name)
        wait_until(lambda seen=seen: len(watch.reloads) > seen)
    assert watch.reloads == [False, False, True]
    assert version(store) == "2"
    check(store, network)


def test_a_folder_that_is_gone_for_a_while_changes_nothing(store: Store, network: Network, watch: Watch) -> None:
    before = store.get("ferns")
    network.path.rename(network.path.with_name("away"))
    asyncio.run(asyncio.sleep(0.1))  # some looks
    network.path.with_name("away").rename(network.path)
    asyncio.run(asyncio.sleep(0.1))
    assert store.get("ferns") is before
    assert watch.reloads == []


def test_a_link_that_leads_to_another_version_is_followed(
    network: Network, tmp_path: Path, make_spec: Callable[..., KanSpec]
) -> None:
    other = Network(tmp_path / "other", make_spec)
    other.export()
    link = tmp_path / "current"
    link.symlink_to(network.path)
    store = Store({"ferns": link}, poll_seconds=0.01)
    store.open()
    (tmp_path / "next").symlink_to(other.path)
    (tmp_path / "next").rename(link)
    wait_until(lambda: version(store) == "2")
    check(store, network)
    store.close()


def test_an_opened_bundle_is_served_as_it_is(network: Network) -> None:
    store = Store({"ferns": open_bundle(network.path)}, poll_seconds=0.01)
    store.open()
    before = store.get("ferns")
    network.export()
    asyncio.run(asyncio.sleep(0.1))  # some looks
    with pytest.raises(InputError, match="'ferns' was given as an opened bundle, not as a folder to look into"):
        store.reload("ferns")
    assert store.get("ferns") is before
    check(store, network)
    store.close()


def test_asking_for_a_reload_tells_why_there_is_none(calm: Store, network: Network) -> None:
    shutil.rmtree(network.path)
    with pytest.raises(BundleError, match="is not a bundle"):
        calm.reload("ferns")
    check(calm, network)


def test_an_unexpected_error_is_logged_with_its_traceback_and_the_watch_goes_on(
    store: Store, network: Network, watch: Watch, caplog: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: object) -> None:
        raise RuntimeError("what nobody thought of")

    monkeypatch.setattr("relukan_deploy.runtime.serving.store.open_bundle", fail)
    os.utime(network.path / "manifest.json")
    wait_until(lambda: watch.reloads == [False])
    monkeypatch.undo()
    network.export()
    wait_until(lambda: version(store) == "2")
    assert caplog.records[0].exc_info is not None


def test_a_batcher_that_has_died_is_replaced(store: Store, network: Network) -> None:
    model = store.get("ferns")
    kill(store, model)
    wait_until(lambda: store.get("ferns") is not model)
    wait_until(store.ready)
    check(store, network)


def test_a_batcher_of_an_opened_bundle_that_has_died_is_replaced_too(network: Network) -> None:
    bundle = open_bundle(network.path)
    shutil.rmtree(network.path)
    store = Store({"ferns": bundle}, poll_seconds=0.01)
    store.open()
    model = store.get("ferns")
    kill(store, model)
    wait_until(lambda: store.get("ferns") is not model)
    check(store, network)
    store.close()


@pytest.mark.slow
def test_replacing_under_load_loses_nothing_and_mixes_nothing(store: Store, network: Network) -> None:
    stop = threading.Event()
    answered: list[str] = []
    wrong: list[BaseException] = []

    async def client(seed: int) -> None:
        while not stop.is_set():
            x = some_rows(1 + seed % 3, 3, seed)
            answer = await store.infer(store.get("ferns"), x)
            network.check(answer.model.version, x, answer.y)
            answered.append(answer.model.version)

    async def clients() -> None:
        await asyncio.gather(*(client(seed) for seed in range(8)))

    def ask() -> None:
        try:
            asyncio.run(clients())
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for expected in range(2, 8):
        network.export()
        wait_until(lambda expected=expected: version(store) == str(expected))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert set(answered) >= {"2", "3", "4", "5", "6"}


# --- the end


def test_closing_answers_what_was_accepted(network: Network) -> None:
    store = Store({"ferns": network.path}, Options(max_delay=100.0))
    store.open()
    waiting = store.get("ferns").batcher.submit(X)
    store.close()
    network.check("1", X, waiting.result(timeout=0))


def test_nothing_is_replaced_after_the_end(calm: Store, network: Network) -> None:
    calm.close()
    network.export()
    with pytest.raises(RelukanError, match="shut down"):
        calm.reload("ferns")


def test_closing_while_opening_ends_it(network: Network) -> None:
    store = Store({"ferns": network.path})
    store.close()
    with pytest.raises(ServiceClosed, match="shut down"):
        store.open()
