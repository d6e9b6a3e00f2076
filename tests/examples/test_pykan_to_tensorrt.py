"""The notebook of pykan runs from the top to the bottom, and leaves nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent.parent / "examples/pykan_to_tensorrt.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def printed(place: Path) -> str:
    """What it prints, run in a folder of its own; pykan warns of much, so warnings are no errors here."""
    pytest.importorskip("kan")
    done = subprocess.run([sys.executable, EXAMPLE], cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_answers_as_pykan_does(printed: str) -> None:
    (largest, wrong) = re.findall(r"answers up to (\S+), largest difference from pykan (\S+)", printed)[0]
    assert float(wrong) < 1e-5 * float(largest)
    ours, theirs = (
        [float(number) for number in numbers.split()]
        for numbers in re.findall(r"far outside: \[(.*)\], pykan \[(.*)\]", printed)[0]
    )
    assert max(map(abs, ours)) > 100
    assert theirs == pytest.approx(ours, rel=1e-5)


@pytest.mark.slow
def test_it_makes_an_engine_and_times_both(printed: str) -> None:
    assert re.search(r"^model.onnx: largest error \d.\de-\d\d, on onnxruntime-cpu$", printed, re.MULTILINE)
    assert re.search(r"^model.engine: ", printed, re.MULTILINE)
    assert re.findall(r"^batch +(\d+): pykan", printed, re.MULTILINE) == ["1", "64", "1024"]


@pytest.mark.slow
@pytest.mark.usefixtures("printed")
def test_it_leaves_the_folder_as_it_was(place: Path) -> None:
    assert not list(place.iterdir())


def test_every_cell_of_prose_has_a_cell_of_code_after_it() -> None:
    cells = re.split(r"^# %%", EXAMPLE.read_text(), flags=re.MULTILINE)[1:]
    assert [cell.startswith(" [markdown]\n") for cell in cells] == [True, False] * (len(cells) // 2)
