"""Run by test_bundle_atomic.py: kills itself at every file-system call of a write, one after the other.

    python kill_points.py {manifest,export,save,version} FOLDER [EVERY]

The N-th fork of this process does the same write and sends itself SIGKILL just before its N-th call
into the operating system's files, for N = 1, 2, 3, … (each EVERY-th) until the write gets to its end.
After each, the parent looks at what is there. Prints one line of JSON: how often that was the old one
and the new one, and what else it was.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# The C functions of a write are methods of these, or functions of the module posix.
FILES = (io.FileIO, io.BufferedWriter, io.BufferedRandom, io.BufferedReader)

Attempt = Callable[[str], None]
Look = Callable[[], str]


def attempts(folder: Path, kind: str) -> tuple[Attempt, Look]:
    """What writes "old" or "new" to one place, and what tells which of them is there."""
    return {"manifest": _manifest, "export": _export, "save": _save, "version": _version}[kind](folder)


def _manifest(folder: Path) -> tuple[Attempt, Look]:
    from relukan_deploy.bundle import Artifact, Manifest, open_bundle, replacing_bundle, write_manifest

    path = folder / "bundle"

    def write(which: str) -> None:
        artifact = Artifact("model.onnx", "onnx", "fp32", "batch-last", "direct", tolerance=1e-5)
        manifest = Manifest((1, 1), "regression", None, (which,), None, (None,), (artifact,))
        with replacing_bundle(path) as written:
            for name in ("model.onnx", "golden.npz"):
                (written / name).write_bytes(which.encode() * 100)
            write_manifest(written, manifest)

    def look() -> str:
        bundle = open_bundle(path)
        (which,) = bundle.manifest.targets or ()
        return which if set(bundle.contents.values()) == {which.encode() * 100} else "a mixture"

    return write, look


def _export(folder: Path) -> tuple[Attempt, Look]:
    from relukan_deploy.api import export
    from relukan_deploy.bundle import open_bundle
    from relukan_deploy.spec import KanSpec, LayerSpec

    path = folder / "bundle"
    height = {"old": 1.0, "new": 2.0}

    def network(which: str) -> KanSpec:
        bump = LayerSpec(np.array([[0.0]]), np.array([[1.0]]), np.array([[[height[which]]]]), np.zeros(1))
        return KanSpec((bump,), targets=(which,))

    def write(which: str) -> None:
        export(network(which), path)

    def look() -> str:
        bundle = open_bundle(path)
        x, y = bundle.golden()
        (which,) = bundle.manifest.targets or ()
        return which if np.array_equal(y, network(which).evaluate(x)) else "a mixture"

    return write, look


def _save(folder: Path) -> tuple[Attempt, Look]:
    import torch

    from relukan_deploy.checkpoint import load_checkpoint, save
    from relukan_deploy.model import ReLUKAN

    torch.set_num_threads(1)
    path = folder / "model.pt"
    bias = {"old": 1.0, "new": 2.0}

    def write(which: str) -> None:
        model = ReLUKAN([2, 1])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(bias[which])
        save(model, path, targets=(which,))

    def look() -> str:
        checkpoint = load_checkpoint(path)
        (which,) = checkpoint.targets or ()
        whole = all(bool((value == bias[which]).all()) for value in checkpoint.model.parameters())
        return which if whole else "a mixture"

    return write, look


def _version(folder: Path) -> tuple[Attempt, Look]:
    """The first version of a model in Triton's repository, and then its second."""
    from relukan_deploy.api import export
    from relukan_deploy.exporters.to_triton import TritonOptions, to_triton
    from relukan_deploy.spec import KanSpec, LayerSpec

    repository = folder / "models"
    bump = LayerSpec(np.array([[0.0]]), np.array([[1.0]]), np.array([[[1.0]]]), np.zeros(1))
    bundle = export(KanSpec((bump,)), folder / "bundle", layout="batch-major")

    def write(which: str) -> None:
        if which == "old":
            shutil.rmtree(repository, ignore_errors=True)
        to_triton(bundle, TritonOptions(repository, name="kan", instances=2 if which == "new" else 1))

    def look() -> str:
        (place,) = repository.iterdir()
        versions = sorted(entry.name for entry in place.iterdir() if entry.name.isdecimal())
        whole = all(
            (place / version / "model.onnx").read_bytes() == bundle.contents["model.onnx"] for version in versions
        )
        config = (place / "config.pbtxt").read_text().endswith('"1"\n  }\n}\n')
        return ("old" if versions == ["1"] else "new") if whole and config else "a mixture"

    return write, look


def die_at(number: int) -> None:
    """Sends this process SIGKILL just before its `number`-th call into the file system."""
    calls = 0

    def count(_frame: Any, event: str, function: Any) -> None:
        nonlocal calls
        if event != "c_call":
            return
        owner = getattr(function, "__self__", None)
        module = getattr(function, "__module__", None)
        # get_errno and fsencode stand right before and after the exchange, which is seen by no profiler
        if module in ("posix", "io", "_io") or isinstance(owner, FILES) or function is ctypes.get_errno:
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def main(kind: str, folder: Path, every: int) -> None:
    write, look = attempts(folder, kind)
    found = {"old": 0, "new": 0}
    wrong: list[str] = []
    number, status = 1, -1
    while status != 0:
        write("old")
        child = os.fork()
        if child == 0:
            die_at(number)
            try:
                write("new")
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        try:
            which = look()
        except Exception as error:
            which = repr(error)
        if which in found and status in (0, signal.SIGKILL):
            found[which] += 1
        else:
            wrong.append(f"call {number}, status {status}: {which}")
        number += every
    write("new")  # whatever the killed ones left behind
    print(json.dumps({**found, "wrong": wrong, "after": look()}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
