"""relukan-predict: a bundle's answers to the rows of a table."""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .._files import replacing_file
from ..bundle import Manifest, open_bundle
from ..errors import InputError
from ..runtime import BACKENDS, load
from ._command import console, make_parser, run


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "relukan-predict", "Runs a bundle over a table (CSV, Parquet or npz), columns matched by name."
    )
    parser.add_argument("bundle", type=Path, help="folder that relukan-export wrote")
    parser.add_argument("data", type=Path, help="a .csv, .parquet or .npz file")
    parser.add_argument("-o", "--out", type=Path, help="CSV or npz to write (default: CSV on standard output)")
    parser.add_argument("--backend", choices=("auto", *BACKENDS), default="auto")
    return run(parser, _predict, argv)


def _predict(arguments: argparse.Namespace) -> None:
    from ..table import read_inputs

    out: Path | None = arguments.out
    if out is not None and out.suffix.lower() not in (".csv", ".npz"):
        raise InputError(f"{out} must end in .csv or .npz")
    if out is not None and out.resolve() == arguments.data.resolve():
        raise InputError(f"{out} is the data itself: choose another file for the answers")
    logging.basicConfig(format="relukan-predict: %(message)s", stream=sys.stderr)
    bundle = open_bundle(arguments.bundle)
    manifest = bundle.manifest
    x = read_inputs(arguments.data, manifest.columns, manifest.in_features)
    runner = load(bundle, backend=arguments.backend)
    columns = _columns(manifest, runner(x))
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as in a file, and as it is read again
        _write_csv(sys.stdout, columns)
        return
    with replacing_file(out) as written:
        if out.suffix.lower() == ".npz":
            _write_npz(written, columns)
        else:
            with written.open("w", newline="", encoding="utf-8") as file:
                _write_csv(file, columns)
    console.print(f"{len(x)} rows → {out} ({runner.backend})", markup=False, soft_wrap=True)


def _columns(manifest: Manifest, y: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Names and values of the answers: the targets, or the label and its probability."""
    if manifest.task == "regression":
        names = manifest.targets or tuple(f"y{index}" for index in range(manifest.out_features))
        return dict(zip(names, y.T, strict=True))
    labels = np.array(manifest.labels or [str(index) for index in range(manifest.out_features)])
    shifted = np.exp(y - y.max(axis=1, keepdims=True))
    probability = shifted.max(axis=1) / shifted.sum(axis=1)  # softmax of the logits
    name = manifest.targets[0] if manifest.targets else "label"
    return {name: labels[y.argmax(axis=1)], f"{name}_probability": probability}


def _write_npz(path: Path, columns: dict[str, NDArray[Any]]) -> None:
    """As numpy.savez_compressed, which cannot write a column that is named as one of its own arguments."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, column, allow_pickle=False)


def _write_csv(file: IO[str], columns: dict[str, NDArray[Any]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        zip(
            *(column.tolist() if column.dtype.kind == "U" else map(str, column) for column in columns.values()),
            strict=True,
        )
    )
