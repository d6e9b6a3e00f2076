"""Data files: CSV, Parquet and npz as one `Table` of named columns.

Every complaint names the file, the column and the place. For a CSV the place is the line of the
file, as a text editor counts (the header is line 1); for the others it is the data row, from 1.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._tabular import Column, as_number, check_names, first_line, line_of, read_csv, read_parquet
from .errors import TableError
from .spec import Task

__all__ = ["Table", "read_inputs", "read_table", "table_of"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# A whole-number target is read as classes when it has no more values than this, ...
_MOST_CLASSES = 20
# ... and on average at least this many rows for each of them.
_ROWS_PER_CLASS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The columns of a data file.

    Attributes:
        name: the path as given, for messages.
        columns: name to values, ``(rows,)`` each. Numbers and booleans are in an array of their
            own type, where all of them are there and finite. Any other column is an array of
            Python objects as read: text, dates, numbers, and None where there is no value.
        default_target: what is predicted unless the caller says otherwise: the last column, or
            the array y of an npz file.
        is_csv: whether places are lines of a text file rather than data rows.
    """

    name: str
    columns: Mapping[str, NDArray[Any]]
    default_target: tuple[str, ...]
    is_csv: bool = False

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def features(self, columns: Sequence[str] | None = None) -> NDArray[np.float32]:
        """The named columns in the order given (None: all of them), ``(rows, len(columns))``.

        Columns are found by name, wherever they are in the file; others are left aside.

        Raises:
            TableError: a column is not there, or a value in it is not a finite float32 number.
        """
        return self._matrix(tuple(self.columns) if columns is None else columns, np.dtype(np.float32))

    def values(self, targets: Sequence[str]) -> NDArray[np.float64]:
        """The targets of a regression, ``(rows, len(targets))``.

        Raises:
            TableError: as for `features`, or a column has the same value everywhere.
        """
        result = self._matrix(targets, np.dtype(np.float64))
        for name, column in zip(targets, result.T, strict=True):
            if column.min() == column.max():
                raise self._error(f"the target {name!r} is {column[0]:g} in every row: there is nothing to learn")
        return result

    def classes(self, target: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """The target of a classification: each row's class ``(rows,)``, and the name of each class.

        Classes are in the order of their values; whole numbers are named without a decimal point.

        Raises:
            TableError: the column is not there, lacks a value, has one class, or is not classes.
        """
        column = self._column(target)
        if column.dtype == object:
            cells = column.tolist()
            if None in cells:
                raise self._bad_cell(target, cells.index(None), None)
            names = [str(cell) for cell in cells]
            labels = tuple(sorted(set(names)))
            index = {name: code for code, name in enumerate(labels)}
            codes = np.fromiter((index[name] for name in names), dtype=np.int64, count=len(names))
        else:
            values, codes = np.unique(column, return_inverse=True)
            labels = tuple(_label(value) for value in values.tolist())
        if len(labels) == 1:
            raise self._error(
                f"the target {target!r} has one class, {labels[0]!r}, in every row: there is nothing to learn"
            )
        if len(labels) * 2 > self.rows:
            raise self._error(
                f"the target {target!r} has {len(labels)} different values in {self.rows} rows: "
                "expected classes that repeat, or numbers for a regression"
            )
        return codes.astype(np.int64), labels

    def infer_task(self, targets: Sequence[str]) -> Task:
        """What `targets` ask for.

        One target of text or booleans is a classification; so is one of whole numbers with at
        most 20 values, each in 10 rows on average. Everything else is a regression, and so is a
        column of numbers among which a few cells are something else: that is a mistake to report.

        Raises:
            TableError: a target is not there.
        """
        columns = [self._column(target) for target in targets]
        if len(columns) != 1:
            return "regression"
        column = columns[0]
        if column.dtype == object:
            numbers = sum(cell is None or as_number(cell) is not None for cell in column)
            return "regression" if numbers * 2 > len(column) else "classification"
        if column.dtype == bool:
            return "classification"
        whole = column.dtype.kind in "iu" or not (column % 1).any()
        count = len(np.unique(column))
        few = count <= _MOST_CLASSES and count * _ROWS_PER_CLASS <= len(column)
        return "classification" if whole and few else "regression"

    def _column(self, name: str) -> NDArray[Any]:
        if name in self.columns:
            return self.columns[name]
        folded = {column.casefold(): column for column in self.columns}
        close = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.7)]
        if close:
            hint = f"did you mean {' or '.join(map(repr, close))}?"
        else:
            names = list(map(repr, self.columns))
            hint = f"its columns are {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
        raise self._error(f"there is no column {name!r}: {hint}")

    def _matrix(self, names: Sequence[str], dtype: np.dtype[Any]) -> NDArray[Any]:
        columns = [self._column(name) for name in names]  # all the names first, then the cells
        result = np.empty((self.rows, len(columns)), dtype)
        for index, (name, column) in enumerate(zip(names, columns, strict=True)):
            if column.dtype == object:
                column = self._parsed(name, column)
            outside = np.abs(column.astype(np.float64)) > _FLOAT32_MAX
            if outside.any():
                row = int(outside.argmax())
                raise self._error(
                    f"column {name!r} has {column[row]:g} {self._place(row)}: expected a number that "
                    f"float32 can hold, up to ±{_FLOAT32_MAX:.3g}. Rescale the column"
                )
            result[:, index] = column
        return result

    def _parsed(self, name: str, column: NDArray[Any]) -> NDArray[np.float64]:
        """Objects as numbers, or an error about the first that is none."""
        result = np.empty(len(column))
        for row, cell in enumerate(column):
            number = as_number(cell)
            if number is None or not np.isfinite(number):
                raise self._bad_cell(name, row, cell)
            result[row] = number
        return result

    def _bad_cell(self, name: str, row: int, cell: object) -> TableError:
        place = self._place(row)
        if cell is None:
            return self._error(f"column {name!r} has no value {place}: fill it in, or remove the row")
        number = as_number(cell)
        if number is None:
            text = repr(cell) if len(repr(cell)) <= 40 else repr(cell)[:39] + "…"
            hint = " (with a point, not a comma)" if re.fullmatch(r"[+-]?\d+,\d+", str(cell)) else ""
            return self._error(f"column {name!r} has {text} {place}: expected a number{hint}")
        what = "NaN" if np.isnan(number) else f"an infinite value ({cell})"
        return self._error(f"column {name!r} has {what} {place}: expected a finite number")

    def _place(self, row: int) -> str:
        if self.is_csv:
            line = line_of(Path(self.name), row)
            if line is not None:
                return f"on line {line}"
        return f"in row {row + 1}"

    def _error(self, message: str) -> TableError:
        return TableError(f"{self.name}: {message}")


def read_table(path: str | Path) -> Table:
    """Reads a data file.

    - ``.csv``: a line of column names, then one line for each row. UTF-8; commas, or semicolons
      or tabs when the header has no comma; blank lines and spaces round a cell are left out.
    - ``.parquet``.
    - ``.npz``: each 1-D array is a column by its name; a 2-D array x ``(rows, n)`` is the columns
      x0, x1, … An array y, 1-D or 2-D, is the default target. Reading it needs no polars.

    Raises:
        TableError: the file is missing, empty, damaged, or of another kind, or its columns are
            not named apart and equally long.
        MissingDependencyError: polars, which reads CSV and Parquet, is not installed.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet", ".npz"):
        raise TableError(f"{path}: expected a file that ends in .csv, .parquet or .npz, got {kind or 'no ending'}")
    if not path.is_file():
        raise TableError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: expected a data file")
    try:
        if path.stat().st_size == 0:
            raise TableError(f"{path} is empty: expected columns and rows")
        if kind == ".npz":
            return table_of(str(path), _read_npz(path))
        return _table(str(path), read_csv(path) if kind == ".csv" else read_parquet(path), is_csv=kind == ".csv")
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from error


def read_inputs(path: str | Path, columns: Sequence[str] | None, in_features: int) -> NDArray[np.float32]:
    """The inputs of a network in a data file, ``(rows, in_features)``.

    Args:
        path: as for `read_table`.
        columns: the network's columns, found by name; None for a network whose inputs were never
            named, whose table has to hold just them, in order.
        in_features: how many inputs the network has.

    Raises:
        TableError: as for `read_table` and `Table.features`, or unnamed columns are not as many.
    """
    table = read_table(path)
    rows = table.features(columns)
    if rows.shape[1] != in_features:
        raise TableError(
            f"{path} has {rows.shape[1]} columns, and the network {in_features} inputs without names: "
            "give a table that holds just these, in order"
        )
    return rows


def table_of(name: str, arrays: Mapping[str, ArrayLike]) -> Table:
    """Arrays as a table: see `read_table` on npz files.

    Raises:
        TableError: an array is neither 1-D nor 2-D, or the columns are not equally long.
    """
    pairs: list[Column] = []
    target: tuple[str, ...] = ()
    for key, value in arrays.items():
        array = np.asarray(value)
        if array.ndim not in (1, 2):
            raise TableError(f"{name}: the array {key!r} must be 1-D or 2-D, got the shape {array.shape}")
        names = [key] if array.ndim == 1 else [f"{key}{index}" for index in range(array.shape[1])]
        pairs += zip(names, [array] if array.ndim == 1 else array.T, strict=True)
        if key == "y":
            target = tuple(names)
    return _table(name, pairs, target)


def _table(name: str, pairs: Iterable[Column], target: tuple[str, ...] = (), is_csv: bool = False) -> Table:
    """Checks what holds for every format."""
    pairs = list(pairs)
    if not pairs:
        raise TableError(f"{name} holds no columns: expected named columns of equal length")
    check_names(name, [column for column, _ in pairs])
    columns = {column: _tidy(values) for column, values in pairs}
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
        raise TableError(
            f"{name}: columns must have the same number of rows, got {lengths[longest]} in {longest!r} "
            f"and {lengths[shortest]} in {shortest!r}"
        )
    if not lengths[pairs[0][0]]:
        raise TableError(f"{name} has columns but no rows: expected at least one row of values")
    return Table(name, columns, target or (pairs[-1][0],), is_csv)


def _tidy(values: NDArray[Any]) -> NDArray[Any]:
    """Numbers that are all finite as they are; everything else as objects."""
    if values.dtype.kind in "biu" or (values.dtype.kind == "f" and bool(np.isfinite(values).all())):
        return values
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    return values.astype(object)


def _label(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise TableError(f"{path} is not an npz file, or is truncated: write one with numpy.savez(path, x=x, y=y)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # numpy and zipfile raise nearly anything here
        if "allow_pickle" in str(error):
            raise TableError(
                f"{path} holds pickled Python objects, which are never run here: save numbers or text alone, "
                "array.astype(float) or array.astype(str)"
            ) from error
        raise TableError(f"{path} cannot be read: it is damaged ({first_line(error)})") from error
