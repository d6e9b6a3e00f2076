"""What `table.read_table` needs to read CSV and Parquet: pairs of a name and a column.

polars does the reading. The standard library's csv module, which is slow and knows lines, reads
the header, and the file again when there is a line to complain about.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import MissingDependencyError, TableError

if TYPE_CHECKING:
    from polars import DataFrame, Series

__all__ = ["Column", "as_number", "check_names", "first_line", "line_of", "read_csv", "read_parquet"]

# A column's name and its values (rows,): numbers where all of them are, else objects, None for no value.
Column = tuple[str, NDArray[Any]]


def read_parquet(path: Path) -> list[Column]:
    """The columns of a Parquet file."""
    try:
        import polars
    except ImportError as error:
        raise MissingDependencyError("Reading a Parquet file", "polars", "table") from error
    try:
        with path.open("rb") as file:  # a path would be taken for a glob pattern
            frame = polars.read_parquet(file)
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:  # damage can do either
        raise TableError(
            f"{path} cannot be read: it is not a Parquet file, or is truncated ({first_line(error)})"
        ) from error
    return [(series.name, _array(series)) for series in frame]


def _array(series: Series) -> NDArray[Any]:
    import polars

    if series.dtype.is_decimal():
        series = series.cast(polars.Float64)
    if series.null_count() == 0 and (series.dtype.is_numeric() or series.dtype == polars.Boolean):
        return series.to_numpy()
    return np.fromiter(series.to_list(), dtype=object, count=len(series))


def read_csv(path: Path) -> list[Column]:
    """The columns of a CSV: float64 where every cell is a finite number, else text."""
    try:
        import polars
    except ImportError as error:
        raise MissingDependencyError("Reading a CSV file", "polars", "table") from error
    header = _header(path)
    try:
        with path.open("rb") as file:
            frame = polars.read_csv(file, infer_schema_length=0, separator=_separator(path))  # all of it as text
    except polars.exceptions.PolarsError as error:
        _check_not_ragged(path)
        raise TableError(f"{path} cannot be read as CSV: {first_line(error)}") from error
    # A line that is too short reads as one that ends in empty cells.
    if frame.width != len(header) or (frame.width > 1 and frame[:, -1].has_nulls()):
        _check_not_ragged(path)
    if frame.width != len(header):
        raise TableError(
            f"{path} cannot be read as CSV: its header reads as {len(header)} names or as {frame.width}. "
            "Check its quotes, and that its lines end in LF or CRLF"
        )
    frame = _without_blanks(frame)
    pairs: list[Column] = []
    for name, text in zip(header, frame, strict=True):
        numbers = text.cast(polars.Float64, strict=False)
        clean = not numbers.has_nulls() and bool(numbers.is_finite().all())
        pairs.append((name, _array(numbers if clean else text)))
    return pairs


def _without_blanks(frame: DataFrame) -> DataFrame:
    """Cells without the spaces round them, null where nothing is left; rows of nothing but nulls dropped."""
    import polars

    cells = polars.all().str.strip_chars()
    frame = frame.select(polars.when(cells != "").then(cells).name.keep())
    return frame.filter(polars.any_horizontal(polars.all().is_not_null()))


def _header(path: Path) -> list[str]:
    header = [name.strip() for name in next((fields for _, fields in _records(path)), [])]
    if not header:
        raise TableError(f"{path} is empty: expected a line of column names, then rows")
    check_names(str(path), header)  # before the rows, for polars renames what repeats
    counted = [str(index) for index in range(len(header) + 1)]
    if all(as_number(name) is not None for name in header) and header not in (counted[:-1], counted[1:]):
        raise TableError(f"{path} begins with numbers ({', '.join(header[:3])} …): expected a line of column names")
    return header


def _separator(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = next((line for line in file if line.strip()), "")
    header = re.sub(r'"[^"]*"', "", header)
    return next((mark for mark in ",;\t" if mark in header), ",")


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, and the line it begins on. Slow: for the header, and for errors."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_separator(path))
            line = 1
            for fields in reader:
                if any(field.strip() for field in fields):
                    yield line, fields
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not UTF-8 text: save it as CSV in UTF-8 ({error.reason})") from error
    except csv.Error as error:
        raise TableError(f"{path} cannot be read as CSV: {error}") from error


def _check_not_ragged(path: Path) -> None:
    records = _records(path)
    _, header = next(records)
    for line, fields in records:
        if len(fields) != len(header):
            raise TableError(
                f"{path}: line {line} has {len(fields)} {'cells' if len(fields) != 1 else 'cell'}: "
                f"expected {len(header)}, as in the header"
            )


def line_of(path: Path, row: int) -> int | None:
    """The line of a CSV that a data row, from 0, begins on."""
    for index, (line, _) in enumerate(_records(path)):
        if index == row + 1:  # the header is the first record
            return line
    return None


def check_names(name: str, columns: Sequence[str]) -> None:
    repeated = [column for column, count in Counter(columns).items() if count > 1]
    if repeated:
        raise TableError(
            f"{name}: {', '.join(map(repr, repeated[:5]))} {'name' if repeated[1:] else 'names'} more than one "
            "column: expected each name once"
        )
    if "" in columns:
        raise TableError(
            f"{name}: column {columns.index('') + 1} has no name: name it, or leave it out "
            "(pandas writes one such column unless told index=False)"
        )


def as_number(cell: object) -> float | None:
    """A cell as a number, NaN and infinity included; None if it is something else."""
    if cell is None or (isinstance(cell, str) and "_" in cell):  # float() takes 1_000, no data file means it
        return None
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def first_line(error: BaseException) -> str:
    """What an error of another package says, short enough to quote."""
    return str(error).strip().split("\n", 1)[0][:200]
