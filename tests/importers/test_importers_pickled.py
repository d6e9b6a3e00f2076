"""Networks that were saved whole: read without their library, and without running anything."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from damaged import refusals_of_changed_bits
from numpy.typing import NDArray
from torch import nn

from relukan_deploy.checkpoint import load_checkpoint
from relukan_deploy.cli.export import main
from relukan_deploy.errors import CheckpointError
from relukan_deploy.importers import _pickled

# Classes of the names, attributes and modules that efficient-kan's have, computing in our own words.
LIBRARY = """
import torch
from torch import nn

class KANLinear(nn.Module):
    def __init__(self, in_features, out_features, base_activation, scaler, grid_size=5, spline_order=3):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.grid_size, self.spline_order, self.grid_eps = grid_size, spline_order, 0.02
        knots = torch.arange(-spline_order, grid_size + spline_order + 1) * 2 / grid_size - 1
        self.register_buffer("grid", knots + 0.3 * torch.rand(in_features, len(knots)))
        self.base_weight = nn.Parameter(torch.randn(out_features, in_features))
        self.spline_weight = nn.Parameter(torch.randn(out_features, in_features, grid_size + spline_order))
        self.enable_standalone_scale_spline = scaler
        if scaler:
            self.spline_scaler = nn.Parameter(torch.randn(out_features, in_features))
        self.base_activation = base_activation()

    def forward(self, x):
        t, z = self.grid, x.unsqueeze(-1)
        b = ((z >= t[:, :-1]) & (z < t[:, 1:])).to(x)
        for p in range(1, self.spline_order + 1):
            b = (z - t[:, :-p - 1]) / (t[:, p:-1] - t[:, :-p - 1]) * b[..., :-1] + (
                t[:, p + 1:] - z) / (t[:, p + 1:] - t[:, 1:-p]) * b[..., 1:]
        weight = self.spline_weight
        if self.enable_standalone_scale_spline:
            weight = weight * self.spline_scaler.unsqueeze(-1)
        return self.base_activation(x) @ self.base_weight.T + torch.einsum("bik,oik->bo", b, weight)

class KAN(nn.Module):
    def __init__(self, widths, base_activation=nn.SiLU, scaler=True):
        super().__init__()
        self.grid_size, self.spline_order = 5, 3
        self.layers = nn.ModuleList(KANLinear(i, o, base_activation, scaler) for i, o in zip(widths, widths[1:]))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
"""

X = np.random.default_rng(0).uniform(-4, 4, (100, 2))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module efficient_kan.kan. Importing it leaves a mark each time."""
    folder = tmp_path / "site" / "efficient_kan"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "kan.py").write_text(
        f"with open({str(tmp_path / 'imported')!r}, 'a') as mark: mark.write('x')\n{LIBRARY}"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    torch.manual_seed(0)
    yield importlib.import_module("efficient_kan.kan")
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "efficient_kan"]:
        del sys.modules[name]


def saved(tmp_path: Path, content: object, **options: Any) -> Path:
    """The file, and then the library is gone from this process; it could be imported."""
    torch.save(content, tmp_path / "model.pt", **options)
    forget()
    return tmp_path / "model.pt"


def answers(model: nn.Module) -> NDArray[np.float64]:
    with torch.no_grad():
        y: NDArray[np.float64] = model.double()(torch.from_numpy(X)).numpy()
    return y


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{path.parent}/", "")


class Trap:
    """Unpickled, it would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


# --- what is read


@pytest.mark.parametrize("scaler", [True, False])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.Identity])
def test_a_whole_network_answers_as_its_own_code_does(
    library: ModuleType, tmp_path: Path, activation: type[nn.Module], scaler: bool
) -> None:
    model = library.KAN([2, 4, 3], activation, scaler)
    path = saved(tmp_path, model)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.kind, checkpoint.spec().widths) == ("efficient-kan", (2, 4, 3))
    expected = answers(model)
    assert np.abs(checkpoint.spec().evaluate(X) - expected).max() < 1e-12 * np.abs(expected).max()


def test_the_modules_it_names_are_not_imported(library: ModuleType, tmp_path: Path) -> None:
    path = saved(tmp_path, library.KAN([2, 1]))
    assert (tmp_path / "imported").read_text() == "x"
    load_checkpoint(path)
    assert (tmp_path / "imported").read_text() == "x"
    assert "efficient_kan" not in sys.modules
    torch.load(path, weights_only=False)
    assert (tmp_path / "imported").read_text() == "xx"  # so it could have been


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_a_whole_network_may_lie_in_a_training_checkpoint(library: ModuleType, tmp_path: Path, key: str) -> None:
    model = library.KAN([2, 1])
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(5, 2)).sum().backward()
    optimizer.step()
    path = saved(tmp_path, {"epoch": 3, "optimizer": optimizer.state_dict(), key: model})
    np.testing.assert_allclose(load_checkpoint(path).spec().evaluate(X), answers(model), rtol=0, atol=1e-12)


def test_buffers_that_a_state_dict_leaves_out_are_left_out_here(library: ModuleType, tmp_path: Path) -> None:
    model = library.KAN([2, 1])
    model.register_buffer("cache", torch.zeros(3), persistent=False)
    model.register_buffer("nothing", None)
    model.register_module("nobody", None)
    content = _pickled.read(saved(tmp_path, model))
    state, _ = _pickled.unpack(content)
    assert state.keys() == model.state_dict().keys()


def test_torch_knows_no_more_classes_afterwards(library: ModuleType, tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    load_checkpoint(saved(tmp_path, library.KAN([2, 1])))
    assert set(torch.serialization.get_safe_globals()) == before


# --- what is refused of a whole network


def test_another_base_activation_is_refused_by_name(library: ModuleType, tmp_path: Path) -> None:
    path = saved(tmp_path, library.KAN([2, 1], nn.GELU))
    assert refusal(path) == (
        "model.pt: the base activation of this efficient-kan is torch.nn.modules.activation.GELU: "
        "expected SiLU or Identity, the same in all layers"
    )


def test_base_activations_that_differ_are_refused(library: ModuleType, tmp_path: Path) -> None:
    model = library.KAN([2, 2, 1])
    model.layers[1].base_activation = nn.Identity()
    message = refusal(saved(tmp_path, model))
    assert "is torch.nn.modules.activation.SiLU, torch.nn.modules.linear.Identity: expected" in message


def test_a_network_without_a_base_activation_is_refused(library: ModuleType, tmp_path: Path) -> None:
    model = library.KAN([2, 1])
    del model.layers[0].base_activation
    assert "the base activation of this efficient-kan is no module: expected" in refusal(saved(tmp_path, model))


def test_a_module_that_a_kan_does_not_have_is_named(library: ModuleType, tmp_path: Path) -> None:
    model = library.KAN([2, 1])
    model.last = nn.Tanh()
    assert refusal(saved(tmp_path, model)) == (
        "model.pt: for a network of efficient-kan this also holds last (torch.nn.modules.activation.Tanh): "
        "expected layers, each with its base_activation"
    )


def test_a_network_of_torch_alone_is_refused_by_its_keys(tmp_path: Path) -> None:
    assert "(its keys: weight, bias)" in refusal(saved(tmp_path, nn.Linear(2, 1)))


def test_a_module_within_itself_comes_to_an_end(library: ModuleType, tmp_path: Path) -> None:
    model = library.KAN([2, 1])
    model.layers.append(model)
    assert "is damaged: its module 'layers.1.layers.1." in refusal(saved(tmp_path, model))


@pytest.mark.parametrize("part", ["_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"])
def test_parts_that_are_not_torchs_are_refused(library: ModuleType, tmp_path: Path, part: str) -> None:
    model = library.KAN([2, 1])
    model.__dict__[part] = [3]
    assert "is damaged: its module '' does not hold its parts as torch.nn.Module does" in refusal(
        saved(tmp_path, model)
    )


def test_something_else_in_the_place_of_a_module_is_refused(library: ModuleType, tmp_path: Path) -> None:
    model = library.KAN([2, 1])
    model.__dict__["_modules"]["layers"] = 3
    assert "is damaged: its module 'layers' is no module" in refusal(saved(tmp_path, model))


# --- what would run


def test_code_alone_is_refused_by_name_and_never_runs(tmp_path: Path) -> None:
    path, mark = saved(tmp_path, {"state_dict": Trap(tmp_path / "executed")}), tmp_path / "executed"
    assert refusal(path) == (
        "model.pt cannot be read: it holds pickled Python objects (posix.system), which are never run here. "
        "Save weights alone: torch.save(model.state_dict(), path)"
    )
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so the file was able to


def test_code_hidden_in_a_good_network_is_refused_by_name_and_never_runs(library: ModuleType, tmp_path: Path) -> None:
    model, mark = library.KAN([2, 1]), tmp_path / "executed"
    model.layers[0].base_activation.__dict__["inplace"] = Trap(mark)
    path = saved(tmp_path, model)
    assert "it holds pickled Python objects (posix.system), which are never run here" in refusal(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_what_a_pickle_does_with_a_class_it_may_name_is_nothing(library: ModuleType, tmp_path: Path) -> None:
    """A class called with arguments, as only a made pickle would: our empty one takes none."""

    class Called:
        def __reduce__(self) -> Any:
            return library.KAN, ([2, 1],)

    assert "model.pt cannot be read: " in refusal(saved(tmp_path, Called()))
    assert "efficient_kan" not in sys.modules


@pytest.mark.parametrize("name", ["os.KAN", "posix.KANLinear", "sys.KAN"])
def test_a_name_like_a_kans_in_a_module_of_the_system_is_nothing_either(tmp_path: Path, name: str) -> None:
    module, _, last = name.partition(".")
    torch.save(
        nn.Linear(1, 1),
        tmp_path / "model.pt",
        pickle_module=naming({"torch.nn.modules.linear Linear": f"{module} {last}"}),
    )
    assert f"it holds pickled Python objects ({name})" in refusal(tmp_path / "model.pt")


def naming(names: dict[str, str]) -> Any:
    """A pickle module that writes other names of classes, by "module name"."""

    class Pickler(pickle.Pickler):
        def __init__(self, file: Any, protocol: int) -> None:
            self.file, self.buffer = file, io.BytesIO()
            super().__init__(self.buffer, protocol)

        def dump(self, content: object) -> None:
            super().dump(content)
            written = self.buffer.getvalue()
            for old, new in names.items():
                assert written.count(old.replace(" ", "\n").encode())
                written = written.replace(old.replace(" ", "\n").encode(), new.replace(" ", "\n").encode())
            self.file.write(written)

    return SimpleNamespace(__name__="renaming", Pickler=Pickler)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("kan.MultKAN MultKAN", "torch.save(model.state_dict(), path), or model.saveckpt(path)"),
        ("relukan_deploy.model ReLUKAN", "torch.save(model.state_dict(), path), or relukan_deploy.save(model, path)"),
        ("dill._dill _create_type", "torch.save(model.state_dict(), path)"),
        ("__main__ Network", "torch.save(model.state_dict(), path)"),
    ],
)
def test_other_classes_are_refused_by_name_with_what_to_save_instead(tmp_path: Path, name: str, advice: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(1, 1), path, pickle_module=naming({"torch.nn.modules.linear Linear": name}))
    assert refusal(path) == (
        f"model.pt cannot be read: it holds pickled Python objects ({name.replace(' ', '.')}), "
        f"which are never run here. Save weights alone: {advice}"
    )


def test_a_name_that_would_write_to_the_terminal_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(1, 1), path, pickle_module=naming({"torch.nn.modules.linear Linear": "a \x1b[2J"}))
    assert "(a.\\x1b[2J)" in refusal(path)


def test_many_names_are_cut_short(tmp_path: Path) -> None:
    path = saved(tmp_path, [SimpleNamespace(), Trap(tmp_path), Path(), random.Random(), np.float64(1), np.zeros(2)])
    assert ", …), which are never run here" in refusal(path)


# --- files of other kinds


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_file_is_said_to_be_one(tmp_path: Path) -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    torch.jit.trace(Doubled(), torch.zeros(1)).save(str(tmp_path / "model.pt"))  # type: ignore[no-untyped-call]
    assert refusal(tmp_path / "model.pt") == (
        "model.pt cannot be read: it is a TorchScript file, which is a program. "
        "Save weights alone: torch.save(model.state_dict(), path)"
    )


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_of_another_protocol_is_said_to_be_one(tmp_path: Path, how: str, protocol: int) -> None:
    path, state = tmp_path / "model.pt", nn.Linear(2, 1).state_dict()
    if how == "torch":
        torch.save(state, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(state, protocol=protocol))
    assert refusal(path) == (
        "model.pt cannot be read: it is a pickle of protocol 4 or later, which is not torch.save's own. "
        "Save weights alone: torch.save(model.state_dict(), path)"
    )


def test_a_plain_pickle_of_tensors_is_refused_by_what_would_run(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps(nn.Linear(2, 1).state_dict(), protocol=2))
    assert "it holds pickled Python objects (torch.storage._load_from_bytes)" in refusal(tmp_path / "model.pt")


def test_a_whole_network_in_torchs_older_format_is_refused_by_name(library: ModuleType, tmp_path: Path) -> None:
    path = saved(tmp_path, nn.Linear(1, 1), _use_new_zipfile_serialization=False)
    assert "it holds pickled Python objects (torch.nn.modules.linear.Linear)" in refusal(path)


def test_a_whole_network_is_refused_by_name_where_torch_is_older(
    library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, library.KAN([2, 1]))
    monkeypatch.delattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
    assert "it holds pickled Python objects (efficient_kan.kan.KAN), which are never run here" in refusal(path)


def test_a_whole_network_that_is_truncated_is_refused(library: ModuleType, tmp_path: Path) -> None:
    path = saved(tmp_path, library.KAN([2, 1]))
    whole = path.read_bytes()
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:size])
        assert "model.pt cannot be read: it is not a PyTorch file, or is truncated" in refusal(path)


def test_a_changed_byte_gives_a_network_or_a_checkpoint_error(library: ModuleType, tmp_path: Path) -> None:
    path = saved(tmp_path, library.KAN([2, 1]))
    assert refusals_of_changed_bits(path, lambda path: load_checkpoint(path).spec()) > 50
    assert "efficient_kan" not in sys.modules


def test_the_command_says_it_and_leaves_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path, {"weights": Trap(tmp_path / "executed")})
    assert main([str(path)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"relukan-export: error: {path} cannot be read: it holds pickled Python objects (posix.")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pt"]
