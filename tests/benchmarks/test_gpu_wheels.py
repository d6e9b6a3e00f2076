"""Wheels in folders, and out of them again. Nothing is fetched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is not installed

from benchmarks import gpu_wheels


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three wheels in folders of at most 100 bytes; the second is larger than one."""
    monkeypatch.setattr(gpu_wheels, "MOST_BYTES", 100)
    wheels = []
    for name, size in (("first", 60), ("large_one", 250), ("last", 70)):
        wheel = tmp_path / f"{name}-1.0-py3-none-any.whl"
        wheel.write_bytes(bytes(range(size)))
        wheels.append(wheel)
    gpu_wheels.pack(wheels, tmp_path / "packed")
    return tmp_path / "packed"


def test_no_folder_is_larger_than_the_limit_and_the_order_is_kept(packed: Path) -> None:
    sizes = {int(folder.name): sum(file.stat().st_size for file in folder.iterdir()) for folder in packed.iterdir()}
    assert sorted(sizes) == [1, 2, 3, 4, 5]
    assert max(sizes.values()) <= 100
    assert [file.name for file in (packed / "1").iterdir()] == ["first-1.0-py3-none-any.whl"]
    assert [file.name for file in (packed / "5").iterdir()] == ["last-1.0-py3-none-any.whl"]


def test_wheels_are_joined_as_they_were(packed: Path, tmp_path: Path) -> None:
    joined = tmp_path / "joined"
    joined.mkdir()
    assert sorted(gpu_wheels.join(packed, joined)) == ["first>=1.0", "large_one>=1.0", "last>=1.0"]
    assert (joined / "large_one-1.0-py3-none-any.whl").read_bytes() == bytes(range(250))
    assert len(list(joined.iterdir())) == 3


def test_a_wheel_that_lacks_a_piece_is_left_out_by_name(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (piece,) = (packed / "3").iterdir()
    piece.unlink()
    joined = tmp_path / "joined"
    joined.mkdir()
    assert sorted(gpu_wheels.join(packed, joined)) == ["first>=1.0", "last>=1.0"]
    assert "large_one-1.0-py3-none-any.whl is left out: only 2 of its 3 pieces" in capsys.readouterr().out


def test_a_folder_without_wheels_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no wheels: make gpu-wheels, and bring what it leaves"):
        gpu_wheels.install(tmp_path, tmp_path / "venv")
