"""relukan-predict, as a person and as a program meet it."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from relukan_deploy.api import export
from relukan_deploy.cli.predict import main
from relukan_deploy.gpu import find_gpu
from relukan_deploy.spec import KanSpec

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
Capture = pytest.CaptureFixture[str]
MakeSpec = Callable[..., KanSpec]

X = np.random.default_rng(7).uniform(-0.5, 1.5, (12, 3)).astype(np.float32)
NAMES = ("width", "height", "depth")


def write_csv(path: Path, columns: dict[str, Any]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def read_csv(text: str) -> dict[str, list[str]]:
    header, *rows = csv.reader(io.StringIO(text))
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def numbers(cells: list[str]) -> NDArray[np.float64]:
    return np.array(cells, np.float64)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "data.csv", dict(zip(NAMES, X.T.tolist(), strict=True)))


@pytest.fixture(scope="module")
def classifier_path(classifier: KanSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(classifier, tmp_path_factory.mktemp("kinds") / "bundle").path


# --- answers


def test_answers_go_to_standard_output_as_csv(bundle_path: Path, table: Path, spec: KanSpec, capsys: Capture) -> None:
    assert main([str(bundle_path), str(table)]) == 0
    answers = read_csv(capsys.readouterr().out)
    assert list(answers) == ["mass", "cost"]
    found = np.stack([numbers(answers["mass"]), numbers(answers["cost"])], axis=1)
    np.testing.assert_allclose(found, spec.evaluate(X), rtol=0, atol=1e-5)


def test_columns_are_found_by_name(bundle_path: Path, table: Path, tmp_path: Path, capsys: Capture) -> None:
    main([str(bundle_path), str(table)])
    expected = capsys.readouterr().out
    mixed = {"depth": X[:, 2], "id": range(12), "width": X[:, 0], "note": ["text"] * 12, "height": X[:, 1]}
    other = write_csv(tmp_path / "mixed.csv", {name: np.array(column).tolist() for name, column in mixed.items()})
    assert main([str(bundle_path), str(other)]) == 0
    assert capsys.readouterr().out == expected


def test_a_csv_is_written(bundle_path: Path, table: Path, tmp_path: Path, capsys: Capture) -> None:
    main([str(bundle_path), str(table)])
    printed = capsys.readouterr().out
    assert main([str(bundle_path), str(table), "-o", str(tmp_path / "answers.csv")]) == 0
    out, err = capsys.readouterr()
    assert (tmp_path / "answers.csv").read_text() == printed
    assert out == ""
    assert err == f"12 rows → {tmp_path / 'answers.csv'} (onnxruntime-cpu)\n" or find_gpu()


def test_an_npz_is_written(bundle_path: Path, table: Path, spec: KanSpec, tmp_path: Path) -> None:
    assert main([str(bundle_path), str(table), "-o", str(tmp_path / "answers.npz")]) == 0
    with np.load(tmp_path / "answers.npz") as answers:
        assert set(answers) == {"mass", "cost"}
        np.testing.assert_allclose(answers["cost"], spec.evaluate(X)[:, 1], rtol=0, atol=1e-5)


def test_an_npz_is_read(bundle_path: Path, table: Path, tmp_path: Path, capsys: Capture) -> None:
    main([str(bundle_path), str(table)])
    expected = capsys.readouterr().out
    np.savez(tmp_path / "data.npz", depth=X[:, 2], height=X[:, 1], width=X[:, 0])
    assert main([str(bundle_path), str(tmp_path / "data.npz")]) == 0
    assert capsys.readouterr().out == expected


def test_a_parquet_file_is_read(bundle_path: Path, table: Path, tmp_path: Path, capsys: Capture) -> None:
    polars = pytest.importorskip("polars")
    main([str(bundle_path), str(table)])
    expected = capsys.readouterr().out
    polars.DataFrame({name: X[:, index] for index, name in enumerate(NAMES)}).write_parquet(tmp_path / "data.parquet")
    assert main([str(bundle_path), str(tmp_path / "data.parquet")]) == 0
    assert capsys.readouterr().out == expected


def test_numbers_are_written_with_all_their_digits(bundle_path: Path, table: Path, tmp_path: Path) -> None:
    main([str(bundle_path), str(table), "-o", str(tmp_path / "answers.npz")])
    main([str(bundle_path), str(table), "-o", str(tmp_path / "answers.csv")])
    text = read_csv((tmp_path / "answers.csv").read_text())
    with np.load(tmp_path / "answers.npz") as answers:
        np.testing.assert_array_equal(np.array(text["mass"], np.float32), answers["mass"])


def test_a_classification_gives_label_and_probability(
    classifier_path: Path, classifier: KanSpec, tmp_path: Path, capsys: Capture
) -> None:
    x = np.random.default_rng(8).uniform(-0.5, 1.5, (40, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    assert main([str(classifier_path), str(tmp_path / "data.npz")]) == 0
    answers = read_csv(capsys.readouterr().out)
    logits = classifier.evaluate(x)
    softmax = np.array([[np.exp(one) / sum(np.exp(row)) for one in row] for row in logits])
    assert list(answers) == ["kind", "kind_probability"]
    assert answers["kind"] == [("fern", "moss", "oak")[index] for index in logits.argmax(axis=1)]
    np.testing.assert_allclose(numbers(answers["kind_probability"]), softmax.max(axis=1), rtol=1e-4)
    assert len(set(answers["kind"])) > 1


def test_labels_are_written_to_npz_as_text(classifier_path: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 4)))
    assert main([str(classifier_path), str(tmp_path / "data.npz"), "-o", str(tmp_path / "out.npz")]) == 0
    with np.load(tmp_path / "out.npz") as answers:
        assert answers["kind"].dtype.kind == "U"
        assert set(answers["kind"]) <= {"fern", "moss", "oak"}


def test_targets_without_names_are_numbered(make_spec: MakeSpec, tmp_path: Path, capsys: Capture) -> None:
    export(make_spec((2, 3)), tmp_path / "bundle")
    np.savez(tmp_path / "data.npz", x=np.zeros((1, 2)))
    main([str(tmp_path / "bundle"), str(tmp_path / "data.npz")])
    assert list(read_csv(capsys.readouterr().out)) == ["y0", "y1", "y2"]


@pytest.mark.parametrize("name", ["file", "allow_pickle", "a,b", 'say "x"', "größe"])
def test_a_target_may_have_any_name(make_spec: MakeSpec, tmp_path: Path, capsys: Capture, name: str) -> None:
    export(make_spec((2, 1), targets=(name,)), tmp_path / "bundle")
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 2)))
    assert main([str(tmp_path / "bundle"), str(tmp_path / "data.npz"), "-o", str(tmp_path / "out.npz")]) == 0
    with np.load(tmp_path / "out.npz") as answers:
        assert {key: values.shape for key, values in answers.items()} == {name: (3,)}
    capsys.readouterr()
    main([str(tmp_path / "bundle"), str(tmp_path / "data.npz")])
    assert list(read_csv(capsys.readouterr().out)) == [name]


# --- exit codes


@pytest.mark.parametrize("arguments", [[], ["bundle"], ["bundle", "data.csv", "--backend", "cpu"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2


def failed(capsys: Capture, arguments: list[str], code: int) -> str:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return str(err).removeprefix("relukan-predict: error: ")


def test_a_missing_column_is_named(bundle_path: Path, tmp_path: Path, capsys: Capture) -> None:
    data = write_csv(tmp_path / "data.csv", {"width": [1], "Height": [2], "depth": [3]})
    message = failed(capsys, [str(bundle_path), str(data)], 2)
    assert message == f"{data}: there is no column 'height': did you mean 'Height'?\n"


def test_a_bad_cell_is_named_by_column_and_line(bundle_path: Path, tmp_path: Path, capsys: Capture) -> None:
    data = write_csv(tmp_path / "data.csv", {"width": [1, 2], "height": [2, "high"], "depth": [3, 3]})
    assert "column 'height' has 'high' on line 3" in failed(capsys, [str(bundle_path), str(data)], 2)


def test_unnamed_columns_must_be_as_many(classifier_path: Path, tmp_path: Path, capsys: Capture) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 5)))
    message = failed(capsys, [str(classifier_path), str(tmp_path / "data.npz")], 2)
    assert "has 5 columns, and the network 4 inputs without names" in message


def test_a_missing_file_is_2(bundle_path: Path, capsys: Capture) -> None:
    assert "is not there: expected a data file" in failed(capsys, [str(bundle_path), "nothing.csv"], 2)


def test_a_folder_that_is_no_bundle_is_2(table: Path, tmp_path: Path, capsys: Capture) -> None:
    assert "is not a bundle" in failed(capsys, [str(tmp_path), str(table)], 2)


def test_an_output_of_another_kind_is_2(bundle_path: Path, table: Path, capsys: Capture) -> None:
    message = failed(capsys, [str(bundle_path), str(table), "-o", "out.xlsx"], 2)
    assert message == "out.xlsx must end in .csv or .npz\n"


def test_a_backend_that_the_bundle_has_nothing_for_is_2(bundle_path: Path, table: Path, capsys: Capture) -> None:
    message = failed(capsys, [str(bundle_path), str(table), "--backend", "tensorrt"], 2)
    assert "has no tensorrt artifact" in message


@without_gpu
def test_a_backend_without_its_gpu_is_4(engine_bundle_path: Path, table: Path, capsys: Capture) -> None:
    failed(capsys, [str(engine_bundle_path), str(table), "--backend", "tensorrt-rtx"], 4)


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"{program}\nimport sys\nfrom relukan_deploy.cli.predict import main\nsys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_a_csv_without_polars_is_4_and_says_what_to_install(bundle_path: Path, table: Path) -> None:
    done = run("import sys; sys.modules['polars'] = None", str(bundle_path), str(table))
    assert done.returncode == 4
    assert "polars" in done.stderr
    assert "pip install 'relukan-deploy[" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_npz_needs_neither_torch_nor_polars(bundle_path: Path, spec: KanSpec, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **dict(zip(NAMES, X.T, strict=True)))
    blocked = "import sys\nfor name in ('torch', 'onnx', 'polars', 'tensorrt_rtx'): sys.modules[name] = None"
    done = run(blocked, str(bundle_path), str(tmp_path / "data.npz"))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(numbers(read_csv(done.stdout)["mass"]), spec.evaluate(X)[:, 0], rtol=0, atol=1e-5)


@without_gpu
def test_what_was_passed_over_is_said_on_standard_error(engine_bundle_path: Path, table: Path) -> None:
    done = run("", str(engine_bundle_path), str(table))
    assert done.returncode == 0
    assert done.stderr.startswith(f"relukan-predict: {engine_bundle_path}: tensorrt-rtx is not used: ")
    assert list(read_csv(done.stdout)) == ["mass", "cost"]


def test_the_data_is_not_overwritten_by_the_answers(bundle_path: Path, table: Path) -> None:
    before = table.read_bytes()
    assert main([str(bundle_path), str(table), "-o", str(table)]) == 2
    assert table.read_bytes() == before
