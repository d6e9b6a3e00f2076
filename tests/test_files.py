"""Files and folders that are replaced whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from relukan_deploy import _files
from relukan_deploy._files import replacing_file, replacing_folder, sha256


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def folder_of(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    return path


def half(path: Path, error: type[BaseException]) -> None:
    path.write_text("half")
    raise error


def test_sha256_is_that_of_the_bytes() -> None:
    assert sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()


# --- files


def test_a_new_file_appears_with_what_was_written(tmp_path: Path) -> None:
    with replacing_file(tmp_path / "model.pt") as written:
        written.write_text("new")
        assert not (tmp_path / "model.pt").exists()
    assert contents(tmp_path) == {"model.pt": "new"}


def test_an_existing_file_is_replaced_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("old, and longer")
    with replacing_file(path) as written:
        written.write_text("new")
        assert path.read_text() == "old, and longer"
    assert contents(tmp_path) == {"model.pt": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "model.pt"
    path.write_text("old")
    with pytest.raises(error), replacing_file(path) as written:
        half(written, error)
    assert contents(tmp_path) == {"model.pt": "old"}


def test_an_error_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"), replacing_file(tmp_path / "model.pt"):
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())


def test_the_path_to_write_to_keeps_the_suffix_and_is_hidden(tmp_path: Path) -> None:
    with replacing_file(tmp_path / "model.safetensors") as written:
        assert written.suffix == ".safetensors"
        assert written.parent == tmp_path
        assert written.name.startswith(".")


def test_missing_folders_are_made(tmp_path: Path) -> None:
    with replacing_file(tmp_path / "a" / "b" / "model.pt") as written:
        written.write_text("new")
    assert (tmp_path / "a" / "b" / "model.pt").read_text() == "new"


def test_a_file_has_the_permissions_any_new_file_has(tmp_path: Path, umask: int) -> None:
    with replacing_file(tmp_path / "model.pt") as written:
        written.write_text("new")
    assert mode(tmp_path / "model.pt") == 0o666 & ~umask


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of Unix")
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"  # /dev/null, to a test
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="no regular file"), replacing_file(pipe) as written:
        written.write_bytes(b"new")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_folder_in_the_way_is_left_as_it_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model.pt", kept="kept")
    with pytest.raises(IsADirectoryError), replacing_file(folder) as written:
        written.write_text("new")
    assert contents(folder) == {"kept": "kept"}
    assert os.listdir(tmp_path) == ["model.pt"]


# --- folders


def test_a_new_folder_appears_with_what_was_written(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "bundle") as written:
        (written / "a").write_text("new")
        assert not (tmp_path / "bundle").exists()
    assert os.listdir(tmp_path) == ["bundle"]
    assert contents(tmp_path / "bundle") == {"a": "new"}


@pytest.mark.parametrize("atomic", [True, False])
def test_an_existing_folder_is_replaced_whole(tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not atomic:
        monkeypatch.setattr("relukan_deploy._files.sys.platform", "darwin")
    path = folder_of(tmp_path / "bundle", a="old", b="old")
    with replacing_folder(path) as written:
        (written / "a").write_text("new")
        assert contents(path) == {"a": "old", "b": "old"}
    assert contents(path) == {"a": "new"}
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = folder_of(tmp_path / "bundle", a="old")
    with pytest.raises(error), replacing_folder(path) as written:
        half(written / "a", error)
    assert contents(path) == {"a": "old"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_swap_that_fails_leaves_the_old_folder_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(one: Path, other: Path) -> None:
        raise OSError("no")

    monkeypatch.setattr(_files, "_exchange", refuse)
    path = folder_of(tmp_path / "bundle", a="old")
    with pytest.raises(OSError, match="no"), replacing_folder(path) as written:
        (written / "a").write_text("new")
    assert contents(path) == {"a": "old"}
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_folder_has_the_permissions_any_new_folder_has(tmp_path: Path, umask: int) -> None:
    with replacing_folder(tmp_path / "bundle") as written:
        (written / "a").write_text("new")
    assert mode(tmp_path / "bundle") == 0o777 & ~umask


def test_a_file_in_the_way_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.write_text("kept")
    with pytest.raises(NotADirectoryError, match="bundle"), replacing_folder(path) as written:
        (written / "a").write_text("new")
    assert contents(tmp_path) == {"bundle": "kept"}


def test_a_link_to_a_folder_stays_one_and_leads_to_the_new_contents(tmp_path: Path) -> None:
    target = folder_of(tmp_path / "version-1", a="old")
    link = tmp_path / "bundle"
    link.symlink_to(target)
    with replacing_folder(link) as written:
        (written / "a").write_text("new")
    assert link.is_symlink()
    assert contents(link) == contents(target) == {"a": "new"}
    assert sorted(os.listdir(tmp_path)) == ["bundle", "version-1"]


def test_a_link_to_a_file_stays_one_and_leads_to_the_new_contents(tmp_path: Path) -> None:
    target, link = tmp_path / "version-1.pt", tmp_path / "model.pt"
    target.write_text("old")
    link.symlink_to(target)
    with replacing_file(link) as written:
        written.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
