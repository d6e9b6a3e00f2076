"""The options of relukan-export and relukan-verify that say how a checkpoint is read, and where its bundle goes."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

import relukan_deploy
from relukan_deploy.api import default_place
from relukan_deploy.bundle import open_bundle
from relukan_deploy.checkpoint import load_checkpoint
from relukan_deploy.cli import export, verify

DATA = Path(__file__).parents[1] / "data"
SPLINES = "efficient_kan_2_5_1_g5k3_updated.pt"
PYKAN = "pykan_2_5_1_g5k3_fit"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder holds splines.pt, and mark_state and mark_config.yml of pykan's saveckpt."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(DATA / SPLINES, "splines.pt")
    saveckpt(Path("mark"))


def saveckpt(prefix: Path) -> None:
    prefix.parent.mkdir(exist_ok=True)
    shutil.copy(DATA / f"{PYKAN}.pt", f"{prefix}_state")
    shutil.copy(DATA / f"{PYKAN}_config.yml", f"{prefix}_config.yml")


def test_a_network_is_exported_by_its_keys_or_as_what_it_is_said_to_be() -> None:
    assert export.main(["splines.pt", "-o", "one"]) == 0
    assert export.main(["splines.pt", "-o", "two", "--from", "efficient-kan"]) == 0
    assert open_bundle("one").manifest.source["kind"] == "efficient-kan"
    assert open_bundle("one").contents["model.onnx"] == open_bundle("two").contents["model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["splines.pt", "--from", "pykan"], "splines.pt is not a checkpoint of pykan (its keys: layers.0."),
        (["splines.pt", "--from", "relukan-deploy"], "splines.pt is not a checkpoint of relukan-deploy (its "),
        (["splines.pt", "--mult-arity", "2"], "splines.pt is a checkpoint of efficient-kan, and --mult-arity is a "),
        (["mark", "--order", "3"], "mark is a checkpoint of pykan, and --order is a matter of relu_kan: leave it out"),
        (["nothing"], "nothing is not there: expected a model file"),
    ],
)
def test_a_reading_that_cannot_be_is_2_with_the_reason(arguments: list[str], message: str, capsys: Capture) -> None:
    assert export.main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"relukan-export: error: {message}")


@pytest.mark.parametrize("arguments", [["--from", "kan"], ["--mult-arity", "0"]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        export.main(["splines.pt", *arguments])
    assert caught.value.code == 2


def test_what_saveckpt_wrote_is_exported_by_the_name_it_was_given_and_again(capsys: Capture) -> None:
    before = {file.name: file.read_bytes() for file in Path().iterdir()}
    assert export.main(["mark"]) == 0
    assert export.main(["mark"]) == 0  # now that a folder mark is there too
    manifest = open_bundle("mark").manifest
    digest = hashlib.sha256(Path("mark_state").read_bytes()).hexdigest()
    assert manifest.source == {"file": "mark_state", "sha256": digest, "kind": "pykan"}
    assert manifest.version == 2
    assert {file.name: file.read_bytes() for file in Path().iterdir() if file.is_file()} == before


def test_a_bundle_is_verified_against_what_it_came_from(capsys: Capture) -> None:
    assert export.main(["mark"]) == 0
    assert verify.main(["mark", "--checkpoint", "mark_state", "--from", "pykan"]) == 0
    capsys.readouterr()
    assert verify.main(["mark", "--checkpoint", "splines.pt"]) == 2
    assert "splines.pt is not the checkpoint that mark was exported from" in capsys.readouterr().err
    assert verify.main(["mark", "--checkpoint", "mark", "--from", "efficient-kan"]) == 2
    assert "mark is a folder: expected a model file" in capsys.readouterr().err


def test_weights_are_replaced_from_a_file_of_another_library() -> None:
    assert export.main(["mark"]) == 0
    runner = relukan_deploy.load("mark")
    x = open_bundle("mark").golden()[0]
    before = runner(x)
    runner.refit("mark", source="pykan")
    assert (runner(x) == before).all()


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("splines.pt", "splines"),
        ("folder/model.v2.pt", "folder/model.v2"),
        ("mark", "mark"),
        ("mark_state", "mark"),
        ("mark_config.yml", "mark"),
        ("alone_state", "alone"),
        ("saved/0.0", "saved/0.0"),
        ("saved/0.0_state", "saved/0.0"),
    ],
)
def test_a_bundle_is_beside_the_checkpoint_and_named_after_it(given: str, place: str) -> None:
    saveckpt(Path("saved/0.0"))
    shutil.copy(DATA / f"{PYKAN}.pt", "alone_state")
    assert default_place(Path(given)) == Path(place)


def test_a_bundle_is_beside_the_folder_of_saveckpt_never_in_it(tmp_path: Path) -> None:
    saveckpt(Path("saved/net"))
    assert export.main(["saved"]) == 0
    assert load_checkpoint("saved").file == Path("saved/net_state")
    assert open_bundle("net").manifest.source["kind"] == "pykan"
    assert sorted(file.name for file in Path("saved").iterdir()) == ["net_config.yml", "net_state"]


def test_a_folder_named_as_its_bundle_would_be_is_left_alone(capsys: Capture) -> None:
    saveckpt(Path("net/net"))
    assert export.main(["net"]) == 2
    assert "net is named as its bundle would be, so the bundle needs a place of its own" in capsys.readouterr().err
    assert export.main(["net", "-o", "net"]) == 2
    assert sorted(file.name for file in Path("net").iterdir()) == ["net_config.yml", "net_state"]
