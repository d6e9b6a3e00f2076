"""Files that are either the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing_file", "replacing_folder", "sha256", "state_path"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def sha256(data: bytes) -> str:
    """The SHA-256 of `data`, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def state_path(checkpoint: Path) -> Path:
    """Where a training that was interrupted left what it takes to go on."""
    return checkpoint.with_name(f"{checkpoint.name}.resume")


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to beside `path`, and moves what was written onto `path` at the end.

    If the block raises, what it wrote is removed and `path` is untouched. Where `path` is a link,
    what it leads to is replaced.

    Raises:
        FileExistsError: `path` is neither a file nor a folder, but a device such as /dev/null.
        IsADirectoryError: it is a folder.
    """
    path = path.resolve()
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise FileExistsError(errno.EEXIST, "it is there, and no regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    written = Path(name)
    try:
        yield written
        written.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide the file from other users
        _flush(written)
        written.replace(path)
        _flush(path.parent)
    finally:
        written.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """Gives an empty folder, and puts it in the place of `path` at the end.

    It is written in `aside`, which has to be on the same file system, or else beside `path`. An
    existing folder is swapped with the new one in one step where the system can (Linux), so a
    crash at any point leaves one of the two whole. If the block raises, `path` is untouched. Where
    `path` is a link, the folder it leads to is replaced.

    Raises:
        NotADirectoryError: `path` is a file.
    """
    path = path.resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=aside or path.parent))
    try:
        yield written
        written.chmod(0o777 & ~_umask())
        for entry in written.rglob("*"):
            _flush(entry)
        _flush(written)
        try:
            written.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            _exchange(written, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(written, ignore_errors=True)  # after an exchange, the old contents


def _exchange(one: Path, other: Path) -> None:
    """Swaps two folders: atomically by renameat2(2), elsewhere by three renames."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        renameat2 = getattr(libc, "renameat2", None)  # glibc 2.28 and later
        if renameat2 is not None:
            if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
                return
            code = ctypes.get_errno()
            if code not in (errno.EINVAL, errno.ENOSYS):  # what file systems without it answer
                raise OSError(code, os.strerror(code), str(other))
    aside = one.with_name(one.name + ".old")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _flush(path: Path) -> None:
    """Waits until the disk has the file, or the folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems refuse fsync on a folder
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(handle)
