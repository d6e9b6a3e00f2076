"""Data files: what is read, and what is said about what cannot be."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relukan_deploy.errors import MissingDependencyError, TableError
from relukan_deploy.table import read_table, table_of


def write(tmp_path: Path, text: str | bytes, name: str = "data.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def message(path: Path, columns: list[str] | None = None) -> str:
    """What `read_table`, or `features` of its result, says about the file, without the folder."""
    with pytest.raises(TableError) as caught:
        read_table(path).features(columns)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


# --- what is read


def test_columns_are_found_by_name_in_the_order_given(tmp_path: Path) -> None:
    path = write(tmp_path, "a,unused,b\n1,x,2\n3,y,4\n")
    features = read_table(path).features(["b", "a"])
    assert features.dtype == np.float32
    assert features.tolist() == [[2, 1], [4, 3]]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfa,b\n1,2.5\n-3e2,4\n",
        b"a,b\r\n1,2.5\r\n-3e2,4\r\n",
        b" a , b\n 1 ,2.5\t\n-3E+2, 4 \n",
        b"a;b\n1;2.5\n-300;4\n",
        b"a\tb\n1\t2.5\n-300\t4\n",
        b'"a","b"\n"1","2.5"\n-300,4\n',
        b"a,b\n1,2.5\n\n,\n  \n-300,4\n\n",
        b"\n\na,b\n1,2.5\n-300,4",
    ],
    ids=["byte order mark", "crlf", "spaces", "semicolons", "tabs", "quotes", "blank lines", "blank lines first"],
)
def test_csv_dialects_read_alike(tmp_path: Path, text: bytes) -> None:
    table = read_table(write(tmp_path, text))
    assert tuple(table.columns) == ("a", "b")
    assert table.features().tolist() == [[1, 2.5], [-300, 4]]


def test_a_quoted_header_may_hold_separators(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, '"width; cm","height, cm"\n1,2\n'))
    assert tuple(table.columns) == ("width; cm", "height, cm")


def test_a_path_is_not_a_pattern(tmp_path: Path) -> None:
    for name in ("[a]*.csv", "[a]*.parquet"):
        path = tmp_path / name
        frame = polars.DataFrame({"a": [1.0]})
        frame.write_csv(path) if name.endswith("csv") else frame.write_parquet(path)
        assert read_table(path).features().tolist() == [[1]]


def test_npz_of_x_and_y(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", y=[5.0, 6.0], x=[[1, 2], [3, 4]])
    table = read_table(tmp_path / "data.npz")
    assert table.default_target == ("y",)
    assert table.features(["x1", "x0"]).tolist() == [[2, 1], [4, 3]]


def test_npz_of_several_targets(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=[[1], [2]], y=[[1, 2], [3, 5]])
    table = read_table(tmp_path / "data.npz")
    assert table.default_target == ("y0", "y1")
    assert table.values(table.default_target).tolist() == [[1, 2], [3, 5]]


def test_npz_of_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", width=[1.0, 2.0], kind=["one", "two"])
    table = read_table(tmp_path / "data.npz")
    assert (tuple(table.columns), table.default_target) == (("width", "kind"), ("kind",))


def test_the_last_column_is_the_default_target(tmp_path: Path) -> None:
    assert read_table(write(tmp_path, "y,a\n1,2\n")).default_target == ("a",)


NAMES = st.lists(st.text("abcxyz_ é,\"'", min_size=1, max_size=6).map(lambda s: f"c{s}c"), min_size=1, unique=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_what_polars_and_numpy_write_reads_back_equal(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    names = data.draw(NAMES)
    rows = data.draw(st.integers(1, 8))
    floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
    columns = {name: data.draw(st.lists(floats, min_size=rows, max_size=rows)) for name in names}
    path = tmp_path / f"data.{kind}"
    if kind == "npz":
        names = [name.replace("/", "") for name in names]
        with zipfile.ZipFile(path, "w") as archive:  # numpy.savez takes names as keywords, "file" among them
            for name, values in columns.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, np.array(values))
    elif kind == "csv":
        polars.DataFrame(columns).write_csv(path)
    else:
        polars.DataFrame(columns).write_parquet(path)
    table = read_table(path)
    assert tuple(table.columns) == tuple(names)
    assert np.array_equal(table.features(), np.array(list(columns.values()), np.float32).T)


# --- what is refused


def test_missing_file(tmp_path: Path) -> None:
    assert message(tmp_path / "no.csv") == "no.csv is not there: expected a data file"


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "d.csv").mkdir()
    assert message(tmp_path / "d.csv") == "d.csv is a folder: expected a data file"


@pytest.mark.parametrize("name", ["data.csv", "data.parquet", "data.npz"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    assert message(write(tmp_path, "", name)) == f"{name} is empty: expected columns and rows"


def test_unknown_ending(tmp_path: Path) -> None:
    assert message(write(tmp_path, "a\n1\n", "data.xlsx")) == (
        "data.xlsx: expected a file that ends in .csv, .parquet or .npz, got .xlsx"
    )
    assert message(write(tmp_path, "a\n1\n", "data")).endswith("got no ending")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\n", "data.csv is empty: expected a line of column names, then rows"),
        ("a,b\n", "data.csv has columns but no rows: expected at least one row of values"),
        ("a,b\n1,2\n3\n", "data.csv: line 3 has 1 cell: expected 2, as in the header"),
        ("a,b\n1,2\n\n3,4,5\n", "data.csv: line 4 has 3 cells: expected 2, as in the header"),
        ('a,b\n"1\n2",2\n3\n', "data.csv: line 4 has 1 cell: expected 2, as in the header"),
        ("a,b,a\n1,2,3\n", "data.csv: 'a' names more than one column: expected each name once"),
        ("a,a,b,b\n1,2,3,4\n", "data.csv: 'a', 'b' name more than one column: expected each name once"),
        (
            ",a\n0,1\n",
            "data.csv: column 1 has no name: name it, or leave it out "
            "(pandas writes one such column unless told index=False)",
        ),
        ("1.5,2\n3,4\n", "data.csv begins with numbers (1.5, 2 …): expected a line of column names"),
        ("a,b\n1,\n", "data.csv: column 'b' has no value on line 2: fill it in, or remove the row"),
        ('a,b\n1,2\n\n" ",4\n', "data.csv: column 'a' has no value on line 4: fill it in, or remove the row"),
        ("a,b\n1,2\n1,two\n", "data.csv: column 'b' has 'two' on line 3: expected a number"),
        ("a,b\n1,1_000\n", "data.csv: column 'b' has '1_000' on line 2: expected a number"),
        ("a;b\n1;2,5\n", "data.csv: column 'b' has '2,5' on line 2: expected a number (with a point, not a comma)"),
        ("a,b\n1,NaN\n", "data.csv: column 'b' has NaN on line 2: expected a finite number"),
        ("a,b\n1,2\n1,-inf\n", "data.csv: column 'b' has an infinite value (-inf) on line 3: expected a finite number"),
        ("a,b\n1,1e400\n", "data.csv: column 'b' has an infinite value (1e400) on line 2: expected a finite number"),
        (
            "a,b\n1,1e39\n",
            "data.csv: column 'b' has 1e+39 on line 2: expected a number that float32 can hold, "
            "up to ±3.4e+38. Rescale the column",
        ),
        (
            "a,b\r1,2\r",
            "data.csv cannot be read as CSV: its header reads as 2 names or as 3. "
            "Check its quotes, and that its lines end in LF or CRLF",
        ),
        (b"a,b\n1,\xff\n", "data.csv is not UTF-8 text: save it as CSV in UTF-8 (invalid start byte)"),
        ("a,b\n1,2\n".encode("utf-16"), "data.csv is not UTF-8 text: save it as CSV in UTF-8 (invalid start byte)"),
    ],
)  # fmt: skip
def test_csv_that_cannot_be_used(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert message(write(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, None], "column 'a' has no value in row 2: fill it in, or remove the row"),
        ([float("nan"), 1.0], "column 'a' has NaN in row 1: expected a finite number"),
        ([1.0, float("inf")], "column 'a' has an infinite value (inf) in row 2: expected a finite number"),
        (["one", "two"], "column 'a' has 'one' in row 1: expected a number"),
        ([[1], [2]], "column 'a' has [1] in row 1: expected a number"),
    ],
)
def test_parquet_that_cannot_be_used(tmp_path: Path, values: list[Any], expected: str) -> None:
    polars.DataFrame({"a": values}).write_parquet(tmp_path / "data.parquet")
    assert message(tmp_path / "data.parquet") == f"data.parquet: {expected}"


def test_parquet_without_rows(tmp_path: Path) -> None:
    polars.DataFrame({"a": []}).write_parquet(tmp_path / "data.parquet")
    assert "has columns but no rows" in message(tmp_path / "data.parquet")


@pytest.mark.parametrize("cut", [10, 100, -1])
def test_truncated_parquet(tmp_path: Path, cut: int) -> None:
    polars.DataFrame({"a": range(100)}).write_parquet(tmp_path / "whole.parquet")
    path = write(tmp_path, (tmp_path / "whole.parquet").read_bytes()[:cut], "data.parquet")
    assert message(path).startswith("data.parquet cannot be read: it is not a Parquet file, or is truncated (")


@pytest.mark.parametrize("cut", [10, 200, -1])
def test_truncated_npz(tmp_path: Path, cut: int) -> None:
    np.savez(tmp_path / "whole.npz", a=np.arange(100))
    path = write(tmp_path, (tmp_path / "whole.npz").read_bytes()[:cut], "data.npz")
    assert message(path) == ("data.npz is not an npz file, or is truncated: write one with numpy.savez(path, x=x, y=y)")


def test_damaged_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", a=np.arange(100))
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[300] ^= 0xFF
    assert message(write(tmp_path, bytes(content), "data.npz")).startswith(
        "data.npz cannot be read: it is damaged (Bad CRC-32"
    )


def test_npz_of_pickles_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", a=np.array([{}, []], dtype=object))
    assert message(tmp_path / "data.npz") == (
        "data.npz holds pickled Python objects, which are never run here: save numbers or text alone, "
        "array.astype(float) or array.astype(str)"
    )


def test_npz_of_unequal_lengths(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", a=[1, 2], b=[1, 2, 3])
    assert message(tmp_path / "data.npz") == (
        "data.npz: columns must have the same number of rows, got 3 in 'b' and 2 in 'a'"
    )


def test_npz_of_the_wrong_shape(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", a=np.zeros((2, 2, 2)))
    assert message(tmp_path / "data.npz") == "data.npz: the array 'a' must be 1-D or 2-D, got the shape (2, 2, 2)"


def test_npz_names_that_meet(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 2)), x1=np.zeros(2))
    assert message(tmp_path / "data.npz") == "data.npz: 'x1' names more than one column: expected each name once"


def test_npz_of_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz")
    assert message(tmp_path / "data.npz") == "data.npz holds no columns: expected named columns of equal length"


def test_a_missing_column_is_named_with_its_neighbours(tmp_path: Path) -> None:
    path = write(tmp_path, "Width,height,depth\n1,2,3\n")
    assert message(path, ["height", "width"]) == "data.csv: there is no column 'width': did you mean 'Width'?"
    assert message(path, ["zzz"]) == "data.csv: there is no column 'zzz': its columns are 'Width', 'height', 'depth'"


@pytest.mark.parametrize("name", ["data.csv", "data.parquet"])
def test_without_polars_the_message_says_what_to_install(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'polars'.*relukan-deploy\[table\]"):
        read_table(write(tmp_path, "a\n1\n", name))


@pytest.mark.slow
def test_npz_needs_neither_polars_nor_torch(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=[[1.0]], y=[2.0])
    code = (
        "import sys; sys.modules['polars'] = sys.modules['torch'] = None\n"
        "from relukan_deploy.table import read_table\n"
        "assert read_table(sys.argv[1]).features().tolist() == [[1, 2]]"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "data.npz"], check=True)


# --- targets


def test_classes_of_text_are_sorted(tmp_path: Path) -> None:
    codes, labels = read_table(write(tmp_path, "a,kind\n1,dog\n2, cat\n3,dog\n4,cat\n")).classes("kind")
    assert (codes.tolist(), labels) == ([1, 0, 1, 0], ("cat", "dog"))


@pytest.mark.parametrize(
    ("values", "labels"),
    [([10, 9, 10, 9], ("9", "10")), ([1.0, 2.0, 1.0, 2.0], ("1", "2")), ([True, False] * 2, ("False", "True"))],
)
def test_classes_of_numbers_are_in_order(values: list[Any], labels: tuple[str, ...]) -> None:
    assert table_of("t", {"y": values}).classes("y")[1] == labels


def test_one_class(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"the target 'b' has one class, 'x', in every row: there is nothing to learn"):
        read_table(write(tmp_path, "a,b\n1,x\n2,x\n")).classes("b")


def test_classes_that_do_not_repeat(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"the target 'b' has 3 different values in 3 rows: expected classes"):
        read_table(write(tmp_path, "a,b\n1,x\n2,y\n3,z\n")).classes("b")


def test_a_class_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"column 'b' has no value on line 3"):
        read_table(write(tmp_path, "a,b\n1,x\n2,\n3,x\n")).classes("b")


def test_constant_target(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"the target 'b' is 2\.5 in every row: there is nothing to learn"):
        read_table(write(tmp_path, "a,b\n1,2.5\n2,2.5\n")).values(["b"])


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["a", "b"] * 50, "classification"),
        ([True, False] * 50, "classification"),
        ([0, 1] * 50, "classification"),
        ([0.0, 1.0] * 50, "classification"),
        ([0.0, 0.5] * 50, "regression"),
        (list(range(20)) * 10, "classification"),
        (list(range(20)) * 9, "regression"),
        (list(range(21)) * 10, "regression"),
        (["1.5"] * 99 + ["typo"], "regression"),
        ([1.5] * 99 + [float("nan")], "regression"),
    ],
)
def test_the_task_follows_from_the_target(values: list[Any], task: str) -> None:
    assert table_of("t", {"y": values}).infer_task(["y"]) == task
