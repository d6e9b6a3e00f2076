"""Model files: what comes back is what was saved, and nothing else does."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from relukan_deploy.checkpoint import Checkpoint, Source, load_checkpoint, save
from relukan_deploy.errors import CheckpointError, InputError
from relukan_deploy.model import ReLUKAN

DATA = Path(__file__).parent / "data"
SUFFIXES = ("pt", "safetensors")
MEANING: dict[str, Any] = {
    "task": "classification",
    "columns": ("längd", "b"),
    "targets": ("kind",),
    "labels": ("no", "yes"),
}


def network(dtype: torch.dtype = torch.float32, **options: Any) -> ReLUKAN:
    torch.manual_seed(0)
    return ReLUKAN([2, 3, 2], 3, 2, **options).to(dtype)


def saved(tmp_path: Path, suffix: str = "pt", model: ReLUKAN | None = None, **meaning: Any) -> Path:
    path = tmp_path / f"model.{suffix}"
    save(model or network(input_range=[[0, 1], [-2, 5]]), path, **meaning)
    return path


def refusal(path: Path) -> str:
    """What `load_checkpoint` says about the file, without the folder; it is one line."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).replace(f"{path.parent}/", "")


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A checkpoint whose content was changed in Python, then written again."""
    path = saved(tmp_path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def same(one: Checkpoint, other: Checkpoint) -> bool:
    first, second = one.model.state_dict(), other.model.state_dict()
    return (
        first.keys() == second.keys()
        and all(torch.equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)
        and one.model.config == other.model.config
        and (one.task, one.columns, one.targets, one.labels, one.kind)
        == (other.task, other.columns, other.targets, other.labels, other.kind)
    )


# --- what comes back


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_and_dtype_come_back(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    model = network(dtype, normalization="peak", train_intervals=False, input_range=[[0, 1], [-2, 5]])
    loaded = load_checkpoint(saved(tmp_path, suffix, model)).model
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert loaded.state_dict()[key].dtype == dtype
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_loaded_network_gives_the_same_answers(tmp_path: Path, suffix: str) -> None:
    model = network(input_range=[[0, 1], [-2, 5]])
    x = torch.rand(7, 2)
    assert torch.equal(load_checkpoint(saved(tmp_path, suffix, model)).model(x), model(x))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_batch_normalisation_comes_back_as_it_is_used(tmp_path: Path, suffix: str) -> None:
    model = network(batch_norm=True, input_range=[[0, 1], [-2, 5]])
    for _ in range(3):
        model(torch.rand(20, 2))
    x = torch.rand(7, 2)
    expected = model.eval()(x)
    assert torch.equal(load_checkpoint(saved(tmp_path, suffix, model)).model(x), expected)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_refined_network_comes_back_with_the_ranges_of_its_hidden_layers(
    tmp_path: Path, suffix: str, batch_norm: bool
) -> None:
    model = network(batch_norm=batch_norm).refine(9).eval()
    loaded = load_checkpoint(saved(tmp_path, suffix, model)).model
    assert torch.equal(loaded.state_dict()["layers.1.input_range"], model.state_dict()["layers.1.input_range"])
    assert "layers.0.input_range" not in loaded.state_dict()
    x = torch.rand(7, 2)
    assert torch.equal(loaded(x), model(x))


def test_a_checkpoint_of_a_release_without_batch_normalisation_opens(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    model = network()
    del model.config["batch_norm"]
    save(model, path)
    assert load_checkpoint(path).model.config == {**model.config, "batch_norm": False}


def test_a_normalisation_of_another_size_is_damage(tmp_path: Path) -> None:
    content = torch.load(saved(tmp_path, model=network(batch_norm=True)), weights_only=True)
    content["state_dict"]["norms.0.running_var"] = torch.zeros(1, 9)
    torch.save(content, tmp_path / "model.pt")
    assert "is damaged: norms.0.running_var is (1, 9), its configuration says (3,)" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_meaning_of_inputs_and_outputs_comes_back(tmp_path: Path, suffix: str) -> None:
    checkpoint = load_checkpoint(saved(tmp_path, suffix, **MEANING))
    assert {name: getattr(checkpoint, name) for name in MEANING} == MEANING
    assert {name: getattr(checkpoint.spec(), name) for name in MEANING} == MEANING
    assert checkpoint.kind == "relukan-deploy"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_network_without_names_or_range_comes_back_without(tmp_path: Path, suffix: str) -> None:
    checkpoint = load_checkpoint(saved(tmp_path, suffix, network()))
    assert (checkpoint.task, checkpoint.columns, checkpoint.labels) == ("regression", None, None)
    assert checkpoint.model.state_dict().get("layers.0.input_range") is None


def test_a_safetensors_file_is_one_that_the_library_itself_reads(tmp_path: Path) -> None:
    import safetensors.torch

    model = network()
    tensors = safetensors.torch.load_file(saved(tmp_path, "safetensors", model))
    assert all(torch.equal(tensors[key], value) for key, value in model.state_dict().items())


def test_a_pt_file_is_one_that_torch_reads_as_weights_only(tmp_path: Path) -> None:
    model = network()
    content = torch.load(saved(tmp_path, "pt", model), weights_only=True)
    assert all(torch.equal(content["state_dict"][key], value) for key, value in model.state_dict().items())


def test_the_same_network_gives_the_same_bytes_under_any_name(tmp_path: Path) -> None:
    model = ReLUKAN([2, 1])
    for name in ("one.pt", "another.pt"):
        save(model, tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "another.pt").read_bytes()


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    save(network(), str(tmp_path / "model.pt"))
    assert load_checkpoint(str(tmp_path / "model.pt")).model.config["widths"] == [2, 3, 2]


# --- writing


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are of Unix")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_without_room_is_told_as_such_and_leaves_the_old_file_and_no_other(tmp_path: Path, suffix: str) -> None:
    import resource

    path = saved(tmp_path, suffix)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(network(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("layers.0.weight")[0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="coefficients must be finite"):
        save(model, tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_names_that_do_not_fit_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="columns must name all 2 inputs, got 3 names"):
        save(network(), tmp_path / "model.pt", columns=("a", "b", "c"))
    assert not list(tmp_path.iterdir())


# --- files that are not checkpoints


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.pt") == "model.pt is not there: expected a model file"


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "model.pt").mkdir()
    assert refusal(tmp_path / "model.pt") == "model.pt is a folder: expected a model file"


@pytest.mark.parametrize(("suffix", "kind"), [("pt", "PyTorch"), ("safetensors", "safetensors")])
def test_an_empty_file_is_refused(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"model.{suffix}"
    path.touch()
    assert f"model.{suffix} cannot be read: it is not a {kind} file, or is truncated" in refusal(path)


@pytest.mark.parametrize(("suffix", "kind"), [("pt", "PyTorch"), ("safetensors", "safetensors")])
def test_a_file_truncated_anywhere_is_said_to_be(tmp_path: Path, suffix: str, kind: str) -> None:
    path = saved(tmp_path, suffix)
    whole = path.read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        assert f"cannot be read: it is not a {kind} file, or is truncated" in refusal(path)


@pytest.mark.parametrize(("suffix", "kind"), [("pt", "PyTorch"), ("safetensors", "safetensors")])
def test_random_bytes_are_not_a_checkpoint(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"model.{suffix}"
    for seed in range(100):
        path.write_bytes(random.Random(seed).randbytes(1 + seed * 7))
        assert f"it is not a {kind} file" in refusal(path)


@pytest.mark.parametrize("text", ["", "a,b,y\n1,2,3\n", "x1,x2\n1,2\n", "hello world\n"])
def test_text_is_not_a_checkpoint(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.pt").write_text(text)
    message = "it is not a PyTorch file, or is truncated: expected what torch.save wrote"
    assert refusal(tmp_path / "model.pt").endswith(message)


class Trap:
    """Unpickled, it would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_code_in_a_file_is_refused_and_never_run(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "executed"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(mark), protocol=2))
    else:
        torch.save({"format": "relukan-deploy checkpoint", "version": 1, "state_dict": Trap(mark)}, path)
    message = refusal(path)
    assert "it holds pickled Python objects (" in message
    assert "getattr" in message  # which protocol 2 finds Path.touch with
    assert "), which are never run here. Save weights alone" in message
    assert not mark.exists()
    torch.load(path, weights_only=False) if how == "torch" else pickle.loads(path.read_bytes())
    assert mark.exists()  # so the file was able to


def test_a_whole_pickled_network_is_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "model.pt")
    assert "torch.save(model.state_dict(), path)" in refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [[1, 2], 3, "text", None, torch.zeros(3)])
def test_anything_but_a_dictionary_is_refused_by_its_type(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pt")
    kind = type(content).__name__
    assert refusal(tmp_path / "model.pt") == (
        f"model.pt holds a {kind}: expected a checkpoint, a dictionary of tensors"
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_another_network_is_refused_with_its_keys(tmp_path: Path, suffix: str) -> None:
    import safetensors.torch

    path = tmp_path / f"model.{suffix}"
    state = nn.Linear(2, 3).state_dict()
    safetensors.torch.save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    message = refusal(path)
    readable = "relukan-deploy, the reference ReLU-KAN (relu_kan), pykan or efficient-kan"
    assert f"is not a checkpoint of {readable} (its keys: " in message
    assert "weight" in message
    assert message.endswith("Save the state dict of one of theirs: torch.save(model.state_dict(), path)")


def test_an_empty_dictionary_is_not_a_checkpoint(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model.pt")
    assert "is not a checkpoint of relukan-deploy" in refusal(tmp_path / "model.pt")


# --- checkpoints that are damaged


@pytest.mark.parametrize("version", [2, 0, None, "1", True])
def test_another_version_is_named_with_the_one_that_is_read(tmp_path: Path, version: object) -> None:
    path = changed(tmp_path, lambda content: content.update(version=version))
    assert refusal(path) == (
        f"model.pt has checkpoint version {version!r}, this release reads 1: upgrade relukan-deploy"
    )


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda content: content["state_dict"].pop("layers.1.bias"))
    assert "tensors missing: ['layers.1.bias'], not expected: none" in refusal(path)


@pytest.mark.parametrize("key", ["layers.2.bias", 7])
def test_an_unknown_tensor_is_named(tmp_path: Path, key: object) -> None:
    path = changed(tmp_path, lambda content: content["state_dict"].update({key: torch.zeros(1)}))
    assert f"tensors missing: none, not expected: ['{key}']" in refusal(path)


@pytest.mark.parametrize("key", ["layers.0.starts", "layers.0.input_range", "layers.1.weight", "layers.1.bias"])
def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path, key: str) -> None:
    path = changed(tmp_path, lambda content: content["state_dict"].update({key: torch.zeros(1, 9)}))
    assert f"is damaged: {key} is (1, 9), its configuration says (" in refusal(path)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2, dtype=torch.int64),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(2).to_sparse(),
        torch.zeros(2, device="meta"),
        [0.0, 0.0],
        None,
    ],
    ids=["integers", "complex", "another dtype", "sparse", "meta", "a list", "None"],
)
def test_a_value_that_is_no_plain_tensor_is_named(tmp_path: Path, value: object) -> None:
    path = changed(tmp_path, lambda content: content["state_dict"].update({"layers.1.bias": value}))
    assert "is damaged: layers.1.bias is " in refusal(path)
    assert "expected a tensor of floating-point numbers" in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"widths": None},
        {"widths": 5},
        {"widths": []},
        {"widths": [2]},
        {"widths": [2, "3", 2]},
        {"widths": [2.0, 3.0, 2.0]},
        {"widths": {"a": 1}},
        {"grid": None},
        {"grid": 3.0},
        {"grid": "3"},
        {"grid": 6, "order": -1},
        {"normalization": "other"},
        {"normalization": ["fixed"]},
        {"batch_norm": 1},
        {"unheard_of": 1},
        {3: 4},
    ],
)
def test_a_configuration_that_makes_no_network_is_refused(tmp_path: Path, change: dict[Any, Any]) -> None:
    path = changed(tmp_path, lambda content: content["config"].update(change))
    assert "is damaged: its configuration is incomplete or wrong (" in refusal(path)


@pytest.mark.parametrize("value", [None, 3, "text", [1, 2]])
@pytest.mark.parametrize("name", ["config", "state_dict"])
def test_a_part_of_another_type_is_refused(tmp_path: Path, name: str, value: object) -> None:
    path = changed(tmp_path, lambda content: content.update({name: value}))
    assert "is damaged: its configuration is incomplete or wrong (" in refusal(path)


@pytest.mark.parametrize("name", ["config", "state_dict", "task", "columns", "labels"])
def test_a_missing_part_is_named(tmp_path: Path, name: str) -> None:
    path = changed(tmp_path, lambda content: content.pop(name))
    assert f"its configuration is incomplete or wrong ('{name}')" in refusal(path)


@pytest.mark.parametrize("name", ["task", "columns", "targets", "labels"])
@pytest.mark.parametrize("value", [5, "ab", [1, 2], {"a": 1, "b": 2}, [["a"], ["b"]]])
def test_names_of_another_type_are_refused(tmp_path: Path, name: str, value: object) -> None:
    path = changed(tmp_path, lambda content: content.update({name: value}))
    assert "is damaged: " in refusal(path)


@pytest.mark.parametrize("widths", [[2**40, 3, 2], [2, 2**40, 2]])
def test_enormous_sizes_are_refused_before_memory_is_asked_for(tmp_path: Path, widths: list[int]) -> None:
    path = changed(tmp_path, lambda content: content["config"].update(widths=widths))
    assert "its configuration says (" in refusal(path)


def test_an_enormous_grid_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda content: content["config"].update(grid=2**40))
    assert f"its configuration says (2, {2**40 + 2})" in refusal(path)


def test_a_changed_weight_does_not_match_the_checksum(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        weight: Tensor = content["state_dict"]["layers.0.weight"]
        weight[0, 0, 0] += 1

    assert refusal(changed(tmp_path, change)) == (
        "model.pt is damaged: it does not match the checksum it was saved with"
    )


@pytest.mark.parametrize("change", [{"columns": ["b", "a"]}, {"sha256": None}, {"sha256": "0" * 64}])
def test_a_changed_name_or_checksum_does_not_match_either(tmp_path: Path, change: dict[str, Any]) -> None:
    assert "does not match the checksum" in refusal(changed(tmp_path, lambda content: content.update(change)))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, suffix: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("layers.1.bias")[0] = value
    with monkeypatch.context() as patch:
        patch.setattr(
            ReLUKAN, "spec", lambda _, **meaning: SimpleNamespace(**meaning)
        )  # which `save` checks the weights with
        path = saved(tmp_path, suffix, model)
    assert refusal(path) == f"model.{suffix} is damaged: bias must be finite, got NaN or infinity in an array of (2,)"


def test_an_unknown_task_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ReLUKAN, "spec", lambda _, **meaning: SimpleNamespace(**meaning))
        path = saved(tmp_path, "pt", task="ranking")
    assert refusal(path) == "model.pt is damaged: task must be 'regression' or 'classification', got 'ranking'"


@pytest.mark.parametrize("header", ["[1]", "3", "{", "null", '"text"'])
def test_safetensors_metadata_that_is_no_header_is_refused(tmp_path: Path, header: str) -> None:
    import safetensors.torch

    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(network().state_dict(), path, metadata={"relukan": header})
    assert "model.safetensors cannot be read: it is not a safetensors file, or is truncated (" in refusal(path)


def test_a_safetensors_header_of_enormous_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + json.dumps({}).encode())
    assert "it is not a safetensors file, or is truncated" in refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_changed_byte_is_refused_or_changes_nothing(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, suffix, **MEANING)
    whole, original = path.read_bytes(), load_checkpoint(path)
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        bytes_ = bytearray(whole)
        bytes_[rng.randrange(len(bytes_))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes_)
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:
            assert same(loaded, original)
    assert refused > 200  # of a .pt file, nearly half is padding


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_changed_byte_in_the_numbers_is_refused(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path, suffix)
    weight = load_checkpoint(path).model.get_parameter("layers.0.weight")
    whole = bytearray(path.read_bytes())
    at = whole.index(weight.detach().numpy().tobytes())
    for offset in range(0, weight.numel() * 4, 7):
        path.write_bytes(whole[: at + offset] + bytes([whole[at + offset] ^ 1]) + whole[at + offset + 1 :])
        assert "damaged" in refusal(path) or "cannot be read" in refusal(path)


def test_names_that_are_numpy_strings_are_saved_as_plain_ones(tmp_path: Path) -> None:
    names = numpy.array(["p", "q"])
    save(network(), tmp_path / "model.pt", columns=tuple(names))
    assert load_checkpoint(tmp_path / "model.pt").columns == ("p", "q")


@pytest.mark.parametrize("columns", ["ab", (0, 1)])
def test_names_that_are_not_strings_are_refused_when_saving(tmp_path: Path, columns: Any) -> None:
    with pytest.raises(InputError, match="columns must be a sequence of strings, got"):
        save(network(), tmp_path / "model.pt", columns=columns)
    assert not (tmp_path / "model.pt").exists()


# --- networks of other libraries

EFFICIENT = DATA / "efficient_kan_2_5_1_g5k3_updated.pt"
PYKAN = DATA / "pykan_2_5_1_g5k3_fit.pt"
REFERENCE = DATA / "relu_kan_2_5_1_g5k3.pt"
X = numpy.random.default_rng(0).uniform(-2, 2, (20, 2))


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def written(tmp_path: Path, content: object) -> Path:
    torch.save(content, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize(("path", "kind"), [(EFFICIENT, "efficient-kan"), (PYKAN, "pykan")])
def test_a_spline_network_is_a_spec_and_has_no_model(path: Path, kind: str) -> None:
    checkpoint = load_checkpoint(path)
    assert (checkpoint.kind, checkpoint.file, checkpoint.spec().widths) == (kind, path, (2, 5, 1))
    with pytest.raises(InputError, match=f"holds a network of {kind}, which has no model here: take its spec()"):
        _ = checkpoint.model


@pytest.mark.parametrize("path", [EFFICIENT, PYKAN])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."], ids=lambda prefix: prefix
)
def test_what_parallel_and_compiled_networks_put_before_their_keys_is_taken_off(
    tmp_path: Path, path: Path, prefix: str
) -> None:
    state = {f"{prefix}{key}": value for key, value in content_of(path).items()}
    answers = load_checkpoint(written(tmp_path, state)).spec().evaluate(X)
    assert numpy.array_equal(answers, load_checkpoint(path).spec().evaluate(X))


@pytest.mark.parametrize("path", [EFFICIENT, PYKAN])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint_is_read_by_its_state_dict(tmp_path: Path, path: Path, key: str) -> None:
    content = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, key: content_of(path)}
    answers = load_checkpoint(written(tmp_path, content)).spec().evaluate(X)
    assert numpy.array_equal(answers, load_checkpoint(path).spec().evaluate(X))


def test_a_safetensors_file_of_another_library_is_read_too(tmp_path: Path) -> None:
    import safetensors.torch

    state = {f"module.{key}": value for key, value in content_of(EFFICIENT).items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    answers = load_checkpoint(tmp_path / "model.safetensors").spec().evaluate(X)
    assert numpy.array_equal(answers, load_checkpoint(EFFICIENT).spec().evaluate(X))


@pytest.mark.parametrize("kind", ["relu_kan", "pykan", "efficient-kan"])
def test_a_source_that_is_given_is_the_one_its_errors_speak_of(tmp_path: Path, kind: Source) -> None:
    path = written(tmp_path, {"weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=rf"is not a checkpoint of {kind} \(its keys: weight\)"):
        load_checkpoint(path, source=kind)


@pytest.mark.parametrize("kind", ["relukan-deploy", "relu_kan", "efficient-kan"])
def test_a_source_that_the_keys_contradict_is_to_be_left_out(kind: Source) -> None:
    message = rf"is not a checkpoint of {kind} \(its keys: node_bias_0, .*, …\): leave out --from to go by its keys"
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(PYKAN, source=kind)


def test_a_source_that_is_given_decides_between_two(tmp_path: Path) -> None:
    path = written(tmp_path, {**torch.load(PYKAN), **torch.load(EFFICIENT)})
    with pytest.raises(CheckpointError, match=r"for a checkpoint of pykan this also holds layers\.0\.base_weight"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"for a checkpoint of efficient-kan this also holds act_fun\.0\."):
        load_checkpoint(path, source="efficient-kan")


@pytest.mark.parametrize(("path", "kind"), [(EFFICIENT, "efficient-kan"), (PYKAN, "pykan")])
def test_a_source_that_is_right_changes_nothing(path: Path, kind: Source) -> None:
    answers = load_checkpoint(path, source=kind).spec().evaluate(X)
    assert numpy.array_equal(answers, load_checkpoint(path).spec().evaluate(X))


def test_an_unknown_source_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="source must be relukan-deploy, relu_kan, pykan, efficient-kan, got 'kan'"):
        load_checkpoint(PYKAN, source="kan")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (PYKAN, {"grid": 5}, "is a checkpoint of pykan, and --grid is a matter of relu_kan: leave it out"),
        (EFFICIENT, {"order": 3}, "is a checkpoint of efficient-kan, and --order is a matter of relu_kan: leave"),
        (
            EFFICIENT,
            {"mult_arity": 2},
            "is a checkpoint of efficient-kan, and --mult-arity is a matter of pykan: leave",
        ),
        (REFERENCE, {"mult_arity": 2}, "is a checkpoint of relu_kan, and --mult-arity is a matter of pykan: leave it"),
        (None, {"grid": 5}, "is a checkpoint of relukan-deploy, and --grid is a matter of relu_kan: leave it out"),
    ],
)
def test_an_option_of_another_library_is_refused(
    tmp_path: Path, path: Path | None, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path or saved(tmp_path), **options)


def test_fast_kan_is_refused_by_what_it_is(tmp_path: Path) -> None:
    shapes = {"layernorm.weight": (2,), "layernorm.bias": (2,), "rbf.grid": (8,), "spline_linear.weight": (3, 16)}
    state = {f"layers.0.{key}": torch.zeros(shape) for key, shape in shapes.items()}
    assert refusal(written(tmp_path, state)) == (
        "model.pt is a checkpoint of fast-kan, whose Gaussian radial basis functions are no piecewise polynomials: "
        "there is no exact form of it to export. Train the network with pykan or efficient-kan"
    )


def test_a_missing_tensor_of_another_library_is_told_with_the_file(tmp_path: Path) -> None:
    state = content_of(EFFICIENT)
    del state["layers.1.grid"]
    assert refusal(written(tmp_path, state)).startswith("model.pt: for a checkpoint of efficient-kan this lacks ")


def test_what_pykans_saveckpt_wrote_is_read_by_any_of_its_paths(tmp_path: Path) -> None:
    saveckpt(tmp_path, "mark")
    expected = load_checkpoint(PYKAN).spec().evaluate(X)
    for path in (tmp_path, tmp_path / "mark", tmp_path / "mark_state", tmp_path / "mark_config.yml"):
        checkpoint = load_checkpoint(path)
        assert (checkpoint.kind, checkpoint.file) == ("pykan", tmp_path / "mark_state")
        assert numpy.array_equal(checkpoint.spec().evaluate(X), expected)


def test_code_in_what_saveckpt_wrote_is_refused_and_never_run(tmp_path: Path) -> None:
    saveckpt(tmp_path, "mark")
    torch.save({"act_fun.0.grid": Trap(tmp_path / "executed")}, tmp_path / "mark_state")
    with pytest.raises(CheckpointError, match=r"mark_state cannot be read: it holds pickled Python objects \(builtins"):
        load_checkpoint(tmp_path / "mark")
    assert not (tmp_path / "executed").exists()


def saveckpt(folder: Path, name: str) -> None:
    """The two files of pykan's saveckpt that are read."""
    shutil.copy(PYKAN, folder / f"{name}_state")
    shutil.copy(PYKAN.with_name(f"{PYKAN.stem}_config.yml"), folder / f"{name}_config.yml")
