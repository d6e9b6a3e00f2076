"""What of pykan is refused, and with which words."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pykan_networks import config_of, needs_pykan, new_network, quiet, state_of
from torch import Tensor

from relukan_deploy.errors import CheckpointError, MissingDependencyError
from relukan_deploy.importers import pykan

State = dict[str, Tensor]


def refusal(state: dict[Any, Any], **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        pykan.load(state, **options)
    return str(caught.value)


def symbolic(name: str, affine: tuple[float, ...] = (1, 0, 1, 0)) -> tuple[State, dict[str, Any]]:
    """A network whose edge 1 → 2 of layer 0 is this function; its inputs go from −1 to 1."""
    state = state_of(2, 3, 1)
    state["symbolic_fun.0.mask"][2, 1] = 1
    state["symbolic_fun.0.affine"][2, 1] = torch.tensor(affine)
    state["act_fun.0.grid"] = torch.tensor([[-4, -3, -2, -1, -0.5, 0.5, 1, 2, 3, 4]]).repeat(2, 1)
    names = [["0", "0"], ["0", "0"], ["0", name]]
    return state, config_of(2, 3, 1, changed={"symbolic.funs_name.0": names})


def write(folder: Path, name: str, state: State, config: object) -> Path:
    torch.save(state, folder / f"{name}_state")
    (folder / f"{name}_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / name


def unread(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        pykan.read_saved(path)
    return str(caught.value)


@pytest.mark.parametrize("key", list(state_of(2, 3, 1)))
def test_a_missing_tensor_is_named(key: str) -> None:
    state = state_of(2, 3, 1)
    del state[key]
    assert refusal(state).startswith(f"for a checkpoint of pykan this lacks {key}. Save it with ")


@pytest.mark.parametrize("key", ["epoch", "biases.0.weight", "act_fun.0.base_fun.weight", 3])
def test_an_unknown_key_is_named(key: object) -> None:
    assert f"also holds {key}. " in refusal({**state_of(2, 3, 1), key: torch.zeros(1)})


def test_an_enormous_layer_number_is_refused_at_once() -> None:
    assert "also holds act_fun.99999999999.grid" in refusal(
        {**state_of(2, 3), "act_fun.99999999999.grid": torch.zeros(2, 8)}
    )


def test_a_layer_number_of_thousands_of_digits_is_an_unknown_key() -> None:
    state = {**state_of(2, 3), f"act_fun.{'9' * 5000}.grid": torch.zeros(2, 8)}
    assert "also holds act_fun.999" in refusal(state)


@pytest.mark.parametrize("key", list(state_of(2, 3)))
def test_a_tensor_of_the_wrong_shape_is_shown_with_the_others(key: str) -> None:
    state = state_of(2, 3)
    state[key] = torch.ones(7, 1, 1)
    message = refusal(state)
    assert message.startswith("layer 0 of this checkpoint of pykan does not fit together: act_fun.0.grid ")
    assert f"{key} (7, 1, 1)" in message


def test_layers_that_do_not_follow_each_other_are_refused() -> None:
    state = {key: value for key, value in state_of(2, 3, 1).items() if key.startswith("act_fun.0") or "0" in key}
    follower = {key.replace("0", "1", 1): value for key, value in state_of(2, 1).items()}
    message = refusal({**state, **follower})
    assert message.startswith("layer 1 of this checkpoint of pykan does not fit together: ")
    assert message.endswith("; the layer before has 3 outputs")


def test_more_outputs_than_sums_are_refused() -> None:
    assert "layer 0 of this checkpoint of pykan does not fit together" in refusal(state_of(2, 3, sums=[2]))


@pytest.mark.parametrize(("grid", "order"), [(3, 8), (3, 0)])
def test_an_order_that_is_not_from_1_to_7_is_refused(grid: int, order: int) -> None:
    assert refusal(state_of(2, 3, grid=grid, order=order)) == (
        f"layer 0 of this checkpoint of pykan has {grid + 2 * order + 1} knots for {grid + order} splines, so order "
        f"{order} and {grid} intervals: expected order 1 to 7 and at least 1 interval"
    )


@pytest.mark.parametrize("value", [3, None, [0.0], torch.zeros(3, dtype=torch.int64)])
def test_a_value_that_is_no_plain_tensor_is_named(value: object) -> None:
    message = refusal({**state_of(2, 3), "node_bias_0": value})
    assert message.startswith("node_bias_0 of this checkpoint of pykan is ")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["act_fun.0.coef", "symbolic_fun.0.affine", "subnode_scale_0"])
def test_a_number_that_is_not_finite_is_refused_by_name(key: str, value: float) -> None:
    state = state_of(2, 3)
    state[key].view(-1)[1] = value
    assert refusal(state) == f"{key} of this checkpoint of pykan must be finite, got NaN or infinity"


@pytest.mark.parametrize("change", [lambda row: row.index_copy(0, torch.tensor([4]), row[[3]]), lambda row: -row])
def test_knots_that_repeat_in_part_or_fall_are_refused(change: Any) -> None:
    state = state_of(2, 3, 1)
    state["act_fun.1.grid"][2] = change(state["act_fun.1.grid"][2])
    assert refusal(state) == (
        "some knots of input 2 of layer 1 of this checkpoint of pykan are equal or do not increase, and pykan's own "
        "splines break off there: update the grid with more varied data, model.update_grid_from_samples(x), or "
        "build the network with a larger grid_eps"
    )


def test_a_symbolic_edge_of_a_state_dict_alone_is_refused() -> None:
    state, _ = symbolic("x")
    assert refusal(state) == (
        "edge 1 → 2 of layer 0 of this checkpoint of pykan is symbolic, and a state dict does not say which function "
        "it computes: save it with model.saveckpt('mark') and give mark_config.yml"
    )
    state["symbolic_fun.1.mask"][0] = 1
    assert refusal(state).startswith("edge 1 → 2 of layer 0 (and 3 more) of this checkpoint of pykan is symbolic")


@pytest.mark.parametrize("name", ["anonymous", "sinc"])
def test_a_function_that_pykan_does_not_come_with_is_refused(name: str) -> None:
    state, config = symbolic(name)
    message = refusal(state, config=config)
    assert message.startswith(
        f"edge 1 → 2 of layer 0 computes {name!r}, which is none of the functions that pykan comes with: "
        "expected one of 0, x, x^2, x^3, x^4, x^5, 1/x, "
    )
    assert message.endswith(". Make it a spline again: model.unfix_symbolic(0, 1, 2)")


@pytest.mark.parametrize(
    ("name", "slope", "shift"),
    [
        *((f"1/x{power}", 1, 0.5) for power in ("", "^2", "^3", "^4", "^5")),
        *((name, 1, 0.9) for name in ("sqrt", "x^0.5", "x^1.5", "log", "1/sqrt(x)", "1/x^0.5")),
        *((name, 1, 1) for name in ("log", "1/sqrt(x)", "1/x", "sgn")),
        ("exp", 1000, 0),
        *((name, 1, 1) for name in ("tan", "arctanh", "arcsin", "arccos")),
        ("tan", -30, 0),
        ("arctanh", 1, 0),
        ("sgn", 1, 0.5),
    ],
)
def test_a_function_that_is_not_finite_on_its_interval_is_refused(name: str, slope: float, shift: float) -> None:
    state, config = symbolic(name, (slope, shift, 2, 0))
    low, high = sorted((shift - slope, shift + slope))
    assert refusal(state, config=config) == (
        f"edge 1 → 2 of layer 0 computes {name!r} of values from {low:.6g} to {high:.6g}, while its input goes from -1 "
        "to 1: it is not finite and continuous there. Fit the grid to the data, model.update_grid_from_samples(x), or "
        "make the edge a spline again: model.unfix_symbolic(0, 1, 2)"
    )


def test_a_function_of_a_hidden_value_that_may_be_anywhere_is_refused() -> None:
    state = state_of(1, 1, 1)
    state["subnode_scale_0"] *= 1e7
    state["symbolic_fun.1.mask"][0, 0] = 1
    state["symbolic_fun.1.affine"][0, 0] = 1
    config = config_of(1, 1, 1, changed={"symbolic.funs_name.1": [["sin"]]})
    message = refusal(state, config=config)
    assert message.startswith("edge 0 → 0 of layer 1 computes 'sin' of anything from -")
    assert message.endswith(
        "by the network's grids and the bounds of its layers: at most 1e+06 wide can be followed. Prune the network, "
        "or make the edge a spline again: model.unfix_symbolic(1, 0, 0)"
    )


@pytest.mark.parametrize("base", ["gelu", "<class 'Tanh'>"])
def test_another_base_function_is_refused_by_name(base: str) -> None:
    assert refusal(state_of(2, 1), config=config_of(2, 1, changed={"base_fun_name": base})) == (
        f"the base function of this checkpoint of pykan is {base!r}: expected one of silu, identity, zero. "
        "Train with one of those"
    )


def test_multiplications_that_counts_leave_open_ask_for_their_number() -> None:
    assert refusal(state_of(2, 5, 1, sums=[7, 1])) == (
        "this checkpoint of pykan has layers of sums and outputs 7:5, 1:1, in more than one way: give "
        "--mult-arity 2 or 3, which all of them have, or save it with model.saveckpt('mark') and give mark_config.yml"
    )


def test_multiplications_of_uneven_numbers_ask_for_the_configuration() -> None:
    message = refusal(state_of(2, 1, 3, sums=[3, 6]), mult_arity=2)
    assert message.endswith(
        "which --mult-arity 2 does not give: save it with model.saveckpt('mark') and give mark_config.yml"
    )


@pytest.mark.parametrize("arity", [-1, 0, 1, 3])
def test_a_number_that_does_not_fit_is_refused(arity: int) -> None:
    assert f"which --mult-arity {arity} does not give: give --mult-arity 2, which all of them have, or save" in refusal(
        state_of(2, 4, 1, sums=[5, 1]), mult_arity=arity
    )


def test_a_configuration_and_an_option_that_differ_are_refused() -> None:
    state, config = state_of(2, 4, sums=[5]), config_of(2, 4, arities=[[2]])
    assert refusal(state, config=config, mult_arity=3) == (
        "the configuration of this checkpoint of pykan holds its own mult_arity, which is not 3: leave out --mult-arity"
    )
    assert pykan.load(state, config=config, mult_arity=2).widths == (2, 4)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (config_of(2, 4, 1), "widths [2, 4, 1] made of [4, 1] sums"),
        (config_of(3, 3, 1), "widths [3, 3, 1] made of [3, 1] sums"),
        (config_of(2, 3), "widths [2, 3] made of [3] sums"),
        (config_of(2, 3, 1, 1), "widths [2, 3, 1, 1] made of [3, 1, 1] sums"),
        (config_of(2, 3, 1, arities=[[2], []]), "widths [2, 3, 1] made of [4, 1] sums"),
    ],
)
def test_a_configuration_of_another_network_is_refused(config: dict[str, Any], said: str) -> None:
    assert refusal(state_of(2, 3, 1), config=config) == (
        f"the configuration of this checkpoint of pykan is for {said}, its state dict is of widths [2, 3, 1] made of "
        "[3, 1] sums: expected both from one model.saveckpt"
    )


@pytest.mark.parametrize(
    "key", ["width", "mult_arity", "base_fun_name", "symbolic_enabled", "symbolic.funs_name.0", "symbolic.funs_name.1"]
)
def test_what_a_configuration_lacks_is_named(key: str) -> None:
    config = config_of(2, 3, 1)
    del config[key]
    assert refusal(state_of(2, 3, 1), config=config) == f"the configuration of this checkpoint of pykan lacks {key!r}"


@pytest.mark.parametrize(
    "changed",
    [
        {"width": None},
        {"width": [2, 3, 1]},
        {"width": [[2, 0], [3.0, 0], [1, 0]]},
        {"width": [[2, 0], [-3, 0], [1, 0]]},
        {"width": []},
        {"width": [[2, 0], [3, 0], [1, 10**12]], "mult_arity": 2},
        {"mult_arity": "2", "width": [[2, 0], [3, 1], [1, 0]]},
        {"mult_arity": [[], [2], []]},
        {"mult_arity": [[]]},
        {"mult_arity": 1, "width": [[2, 0], [3, 1], [1, 0]]},
        {"mult_arity": [3, 3, 3]},
        {"symbolic_enabled": "yes"},
        {"base_fun_name": None},
        {"symbolic.funs_name.0": [["0", "0"]]},
        {"symbolic.funs_name.0": [["0"]] * 3},
        {"symbolic.funs_name.0": [["0", 0]] * 3},
        {"symbolic.funs_name.0": 7},
    ],
)
def test_a_configuration_that_is_not_what_pykan_writes_is_refused(changed: dict[str, Any]) -> None:
    message = refusal(state_of(2, 3, 1), config=config_of(2, 3, 1, changed=changed))
    assert message.startswith("the configuration of this checkpoint of pykan is not what it writes: ")


def test_several_checkpoints_in_a_folder_are_listed(tmp_path: Path) -> None:
    for age, name in enumerate(("0.2", "0.10", "0.1")):
        write(tmp_path, name, state_of(2, 1), {})
        os.utime(tmp_path / f"{name}_config.yml", (1000 - age, 1000 - age))
    assert unread(tmp_path) == (
        f"{tmp_path} leads to 3 checkpoints of pykan: give one of {tmp_path}/0.2, {tmp_path}/0.10, {tmp_path}/0.1 "
        "(newest first)"
    )


def test_a_checkpoint_of_a_folders_name_is_not_preferred_to_those_inside(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write(tmp_path, "model", state_of(2, 1), {})
    write(tmp_path / "model", "0.0", state_of(2, 1), {})
    message = unread(tmp_path / "model")
    assert "leads to 2 checkpoints" in message
    assert f"{tmp_path}/model/0.0" in message


def test_a_state_that_is_missing_is_named(tmp_path: Path) -> None:
    prefix = write(tmp_path, "mark", state_of(2, 1), {})
    (tmp_path / "mark_state").unlink()
    assert unread(prefix) == f"{prefix}_state is not there: pykan's model.saveckpt writes it beside mark_config.yml"


@pytest.mark.parametrize("text", ["width: !!python/tuple [1, 2]", "a: 1\nb: !!python/object/apply:os.system ['false']"])
def test_a_python_object_in_a_configuration_is_never_built(tmp_path: Path, text: str) -> None:
    prefix = write(tmp_path, "mark", state_of(2, 1), {})
    path = tmp_path / "mark_config.yml"
    path.write_text(text, encoding="utf-8")
    *_, line = text.splitlines()
    assert unread(prefix) == (
        f"{path} holds a Python object, which is never built here, in line {len(text.splitlines())}: {line}. Give the "
        "network plain values and save it again: where pykan's prune_input put an object, del model.base_fun_name; "
        "model.base_fun_name = 'silu'; model.saveckpt('mark')"
    )


@needs_pykan
def test_prune_input_leaves_such_an_object_and_the_advice_helps(tmp_path: Path) -> None:
    with quiet():
        model = new_network([2, 1], tmp_path).prune_input(active_inputs=[1], log_history=False)
        model.saveckpt(str(tmp_path / "mark"))
    assert "line 3: base_fun_name: !!python/object:torch.nn.modules.activation.SiLU. Give" in unread(tmp_path)
    del model.base_fun_name
    model.base_fun_name = "silu"
    with quiet():
        model.saveckpt(str(tmp_path / "mark"))
    found = pykan.read_saved(tmp_path)
    assert found is not None
    assert pykan.load(torch.load(found[0]), config=found[1]).widths == (1, 1)


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe\x00", b"[" * 5000, b"a: &a [*a", b"\x00"])
def test_a_configuration_that_is_not_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    prefix = write(tmp_path, "mark", state_of(2, 1), {})
    (tmp_path / "mark_config.yml").write_bytes(content)
    assert unread(prefix).startswith(f"{prefix}_config.yml cannot be read: it is not a YAML file (")


@pytest.mark.parametrize(("content", "kind"), [([1], "list"), (None, "NoneType"), ("a", "str")])
def test_a_configuration_that_is_no_dictionary_is_refused(tmp_path: Path, content: object, kind: str) -> None:
    prefix = write(tmp_path, "mark", state_of(2, 1), content)
    assert unread(prefix) == f"{prefix}_config.yml holds a {kind}: expected what pykan's model.saveckpt writes"


def test_a_missing_yaml_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write(tmp_path, "mark", state_of(2, 1), {})
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependencyError, match=r"model\.saveckpt wrote needs the package 'pyyaml'.*\[export\]"):
        pykan.read_saved(prefix)
