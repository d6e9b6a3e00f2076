"""The network in PyTorch, against float64 formulas and the reference's full-size Conv2d."""

from __future__ import annotations

import copy
import itertools
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from relukan_deploy.errors import InputError
from relukan_deploy.model import Normalization, ReLUKAN, ReLUKANLayer

NORMALIZATIONS: tuple[Normalization, ...] = ("fixed", "peak")
Array = NDArray[np.float64]


def layer_of(in_features: int, out_features: int, *, move: float = 0.0, seed: int = 0, **options: Any) -> ReLUKANLayer:
    """A float64 layer whose s and e were moved from the lattice by up to `move`."""
    torch.manual_seed(seed)
    layer = ReLUKANLayer(in_features, out_features, **options).double()
    with torch.no_grad():
        layer.starts += move * (2 * torch.rand_like(layer.starts) - 1)
        layer.ends += move * (2 * torch.rand_like(layer.ends) - 1)
    return layer


def network_of(*widths: int, move: float = 0.05, seed: int = 0, **options: Any) -> ReLUKAN:
    torch.manual_seed(seed)
    model = ReLUKAN(widths, **options).double()
    with torch.no_grad():
        for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
            if name.endswith(("starts", "ends")):
                value += move * (2 * torch.rand_like(value) - 1)
    return model


def by_einsum(layer: ReLUKANLayer, x: Array) -> Array:
    """Equation 9 of the paper, with the factor in full: 16·grid⁴/(order+1)⁴ or 16/(e−s)⁴."""
    s, e, w, b = (t.detach().double().numpy() for t in (layer.starts, layer.ends, layer.weight, layer.bias))
    if layer.normalization == "fixed":
        factor = np.full_like(s, (4 * layer.grid**2 / (layer.order + 1) ** 2) ** 2)
    else:
        factor = 16 / np.where(s < e, e - s, np.inf) ** 4
    if layer.input_range is not None:
        low, high = layer.input_range.double().numpy().T
        x = (x - low) / (high - low)
    x = x[..., np.newaxis]
    basis = np.clip(e - x, 0, None) ** 2 * np.clip(x - s, 0, None) ** 2 * factor
    return np.asarray(np.einsum("...ik,oik->...o", basis, w) + b)


# --- powers


@pytest.mark.parametrize("power", range(1, 9))
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_power_raises_the_normalised_bump(normalization: Normalization, power: int) -> None:
    layer = layer_of(3, 2, move=0.05, normalization=normalization, power=power)
    x = np.random.default_rng(0).uniform(-0.5, 1.5, (50, 3))
    s, e, w, b = (t.detach().numpy() for t in (layer.starts, layer.ends, layer.weight, layer.bias))
    # HRKAN's constant (2/(e−s))^2m, or what it is at initialisation, 4·grid²/(order+1)² to the m.
    factor = np.full_like(s, (100 / 16) ** power) if normalization == "fixed" else (2 / (e - s)) ** (2 * power)
    inside = np.clip(e - x[..., np.newaxis], 0, None) * np.clip(x[..., np.newaxis] - s, 0, None)
    expected = np.einsum("nik,oik->no", inside**power * factor, w) + b
    with torch.no_grad():
        assert np.allclose(layer(torch.from_numpy(x)).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("power", range(1, 9))
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_spec_of_each_power_is_the_network(normalization: Normalization, power: int) -> None:
    model = network_of(3, 4, 2, normalization=normalization, power=power, input_range=[[-3.0, 5.0]] * 3)
    x = np.random.default_rng(0).uniform(-4, 6, (50, 3))
    with torch.no_grad():
        assert np.allclose(model.spec().evaluate(x), model(torch.from_numpy(x)).numpy(), rtol=1e-10, atol=1e-12)


# --- forward


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    grid=st.integers(1, 8),
    order=st.integers(0, 4),
    move=st.sampled_from([0.0, 0.05, 1.0]),
    ranged=st.booleans(),
)
def test_forward_is_the_printed_formula_wherever_s_and_e_are(
    normalization: Normalization, seed: int, sizes: tuple[int, int], grid: int, order: int, move: float, ranged: bool
) -> None:
    span = [[-2.0, 3.0]] * sizes[0] if ranged else None
    layer = layer_of(
        *sizes, grid=grid, order=order, normalization=normalization, move=move, seed=seed, input_range=span
    )
    x = np.random.default_rng(seed).normal(0, 2, (7, sizes[0]))
    expected = by_einsum(layer, x)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach().numpy() / scale, expected / scale, atol=1e-11)


def test_both_normalizations_agree_until_s_and_e_move() -> None:
    fixed, peak = (layer_of(3, 2, normalization=each) for each in NORMALIZATIONS)
    x = torch.rand(9, 3, dtype=torch.float64)
    torch.testing.assert_close(fixed(x), peak(x), rtol=1e-6, atol=1e-6)  # s and e began as float32


def test_the_normalizations_differ_once_s_and_e_moved() -> None:
    fixed, peak = (layer_of(3, 2, normalization=each, move=0.1) for each in NORMALIZATIONS)
    x = torch.rand(9, 3, dtype=torch.float64)
    assert (fixed(x) - peak(x)).abs().max() > 1e-3


@pytest.mark.parametrize("lead", [(), (1,), (6,), (2, 3), (0,), (2, 0, 4)])
def test_any_leading_axes_are_kept(lead: tuple[int, ...]) -> None:
    model = network_of(3, 4, 2)
    x = torch.rand(*lead, 3, dtype=torch.float64)
    y = model(x)
    assert y.shape == (*lead, 2)
    torch.testing.assert_close(y.reshape(-1, 2), model(x.reshape(-1, 3)))


class FullSizeConv(nn.Module):
    """One layer of the reference implementation: a Conv2d as large as the basis, which it does not transpose."""

    def __init__(self, layer: ReLUKANLayer) -> None:
        super().__init__()
        self.layer = layer
        bumps = layer.grid + layer.order
        self.conv = nn.Conv2d(1, layer.out_features, (bumps, layer.in_features)).double()
        with torch.no_grad():
            self.conv.weight.copy_(layer.weight.reshape(self.conv.weight.shape))
            self.conv.bias.copy_(layer.bias)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        x = x.unsqueeze(-1)
        basis = torch.relu(x - layer.starts) * torch.relu(layer.ends - x)
        basis = basis * (4 * layer.grid * layer.grid / ((layer.order + 1) * (layer.order + 1)))
        basis = (basis * basis).reshape(len(x), 1, layer.grid + layer.order, layer.in_features)
        total: Tensor = self.conv(basis)
        return total.reshape(len(x), -1)


def test_a_layer_equals_the_reference_full_size_convolution() -> None:
    layer = layer_of(5, 3, grid=4, order=2, move=0.1)
    x = torch.rand(11, 5, dtype=torch.float64) * 1.4 - 0.2
    torch.testing.assert_close(layer(x), FullSizeConv(layer)(x), rtol=1e-13, atol=1e-13)


# --- batch normalisation


def normalized_network(*widths: int, seed: int = 0, **options: Any) -> ReLUKAN:
    """In eval(), with statistics, gains and shifts of its own in every normalisation."""
    model = network_of(*widths, seed=seed, batch_norm=True, **options)
    with torch.no_grad():
        for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
            if name.startswith("norms.") and value.is_floating_point():
                value.uniform_(0.3, 1.5)
    return model.eval()


def test_hidden_outputs_are_normalised_and_spread_over_two_deviations() -> None:
    model = normalized_network(2, 3, 1, normalization="peak")
    first, last = model.layers
    x = torch.rand(9, 2, dtype=torch.float64)
    with torch.no_grad():
        norm = {name.removeprefix("norms.0."): value for name, value in model.state_dict().items()}
        hidden = (first(x) - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt()
        hidden = hidden * norm["weight"] + norm["bias"]
        last.input_range = None  # type: ignore[assignment]
        torch.testing.assert_close(normalized_network(2, 3, 1, normalization="peak")(x), last((hidden + 2) / 4))


def test_training_normalises_by_the_batch_and_remembers() -> None:
    model = network_of(2, 3, 1, batch_norm=True).train()
    seen: list[Tensor] = []
    model.layers[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.rand(50, 2, dtype=torch.float64))
    assert np.allclose(seen[0].detach().mean(0), 0, atol=1e-9)
    assert np.allclose(seen[0].detach().std(0, correction=0), 1, atol=0.01)
    assert (model.get_buffer("norms.0.running_mean") != 0).all()


@pytest.mark.parametrize("power", [1, 2, 5])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_batch_normalisation_folds_into_the_spec(normalization: Normalization, power: int) -> None:
    model = normalized_network(3, 4, 5, 2, normalization=normalization, power=power, input_range=[[-3.0, 5.0]] * 3)
    x = np.random.default_rng(0).uniform(-4, 6, (50, 3))
    with torch.no_grad():
        assert np.allclose(model.spec().evaluate(x), model(torch.from_numpy(x)).numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (0,)])
def test_batch_normalisation_keeps_leading_axes(lead: tuple[int, ...]) -> None:
    model = normalized_network(3, 4, 2)
    x = torch.rand(*lead, 3, dtype=torch.float64)
    y = model(x)
    assert y.shape == (*lead, 2)
    torch.testing.assert_close(y.reshape(-1, 2), model(x.reshape(-1, 3)))


# --- how it begins, and what dies


@pytest.mark.parametrize("order", [3, 4])
@pytest.mark.parametrize("power", [1, 2, 4])
def test_a_linear_layer_is_nearly_straight_and_keeps_the_spread(power: int, order: int) -> None:
    torch.manual_seed(0)
    layer = ReLUKANLayer(200, 300, grid=8, order=order, power=power)
    layer.reset_linear()
    x = torch.rand(400, 200)
    line = torch.linspace(0, 1, 401)
    with torch.no_grad():
        assert float(layer(x).var(0).mean() / x.var()) == pytest.approx(1, abs=0.1)
        edge = layer(torch.nn.functional.pad(line[:, None], (0, 199), value=-9.0))[:, 0]  # beyond the grid: zero
        away = edge - torch.from_numpy(np.polyval(np.polyfit(line, edge, 1), line))
        assert away.abs().max() < 0.05 * (edge.max() - edge.min())
        assert layer(torch.full((1, 200), 0.5)).abs().max() < 1e-3


def test_hidden_layers_that_begin_linear_are_in_the_middle_of_the_next_grid() -> None:
    model = ReLUKAN([2, 4, 1], initialization="linear")
    assert (model.get_parameter("layers.0.bias") == 0.5).all()
    assert (model.get_parameter("layers.1.bias") == 0).all()
    assert (model.get_parameter("layers.1.weight") != 0).any()


def test_a_single_layer_that_begins_linear_begins_at_zero() -> None:
    assert (ReLUKAN([2, 3], initialization="linear")(torch.rand(9, 2)) == 0).all()


def test_dead_inputs_are_those_that_no_live_bump_reaches() -> None:
    model = network_of(2, 3, 1, move=0)
    with torch.no_grad():
        model.get_parameter("layers.0.weight").fill_(1)
        model.get_parameter("layers.0.weight")[:, 1, :4] = 0  # the second input's bumps left of 0.2
        model.get_parameter("layers.1.starts")[:2] = 9  # crossed
    x = torch.tensor([[0.1, 0.1], [0.5, 0.5], [5.0, -5.0], [-0.5, 0.3]], dtype=torch.float64)
    model.get_parameter("layers.0.bias").data.fill_(-50.0)  # whatever x is, no bump of the second layer is reached
    assert model.dead_inputs(x) == (3 / 8, 1.0)
    model.get_parameter("layers.0.bias").data.fill_(0.5)
    model.get_parameter("layers.0.weight").data.mul_(1e-9)
    model.get_parameter("layers.1.weight").data.fill_(1)
    assert model.dead_inputs(x)[1] == pytest.approx(2 / 3)


def test_looking_for_dead_inputs_changes_nothing() -> None:
    model = network_of(2, 3, 1, batch_norm=True).train()
    before = copy.deepcopy(model.state_dict())
    model.dead_inputs(torch.rand(9, 2, dtype=torch.float64))
    assert model.training
    assert model.norms[0].training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def trained_on_four_inputs(**options: Any) -> tuple[float, float]:
    """Of five layers on the paper's four-input function: the error beside the variance, the worst layer's dead."""
    torch.manual_seed(0)
    x = torch.rand(300, 4)
    squares = torch.pi * x.square()
    y = (torch.sin(squares[:, 0] + squares[:, 1]) + torch.sin(squares[:, 2] + squares[:, 3])).exp().unsqueeze(1)
    model = ReLUKAN([4, 8, 8, 8, 8, 1], **options)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        loss = functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        error = functional.mse_loss(model.eval()(x), y)
    return float(error / y.var(correction=0)), max(model.dead_inputs(x))


def test_five_plain_layers_die_at_a_high_learning_rate() -> None:
    error, dead = trained_on_four_inputs()
    assert error > 0.9
    assert dead > 0.9


def test_five_layers_learn_with_batch_normalisation_and_linear_edges() -> None:
    error, dead = trained_on_four_inputs(batch_norm=True, initialization="linear")
    assert error < 0.05
    assert dead < 0.1


# --- gradients


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_gradients_are_those_of_finite_differences(normalization: Normalization) -> None:
    layer = layer_of(2, 3, grid=3, order=2, move=0.03, normalization=normalization, input_range=[[-1, 2], [0, 5]])
    x = torch.tensor([[0.1, 3.3], [1.7, 0.4]], dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, weight: Tensor, bias: Tensor, starts: Tensor, ends: Tensor) -> Any:
        named = {"weight": weight, "bias": bias, "starts": starts, "ends": ends}
        return torch.func.functional_call(layer, named, (x,))

    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias, layer.starts, layer.ends))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("excess", [0.0, 1e-4, 0.5])
def test_crossed_bumps_give_zero_and_finite_gradients(normalization: Normalization, excess: float) -> None:
    layer = layer_of(2, 3, normalization=normalization)
    with torch.no_grad():
        layer.starts.copy_(layer.ends + excess)
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).unsqueeze(1).repeat(1, 2).requires_grad_()
    y = layer(x)
    assert (y == layer.bias).all()
    y.square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


# --- PyTorch's own machinery


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
def test_torch_compile_gives_the_same_numbers() -> None:
    model = network_of(2, 3, 1, normalization="peak").float()
    x = torch.rand(8, 2)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


def test_autocast_computes_the_product_in_bfloat16_near_the_float32_answer() -> None:
    model = network_of(3, 4, 2).float()
    x = torch.rand(16, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), model(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_answers_have_the_dtype_of_the_network(dtype: torch.dtype) -> None:
    assert network_of(3, 2).to(dtype)(torch.rand(4, 3, dtype=dtype)).dtype == dtype


def test_a_state_dict_brings_the_function_over() -> None:
    options: dict[str, Any] = {"grid": 3, "order": 2, "input_range": [[0, 2], [-1, 1]]}
    source, target = network_of(2, 3, 1, seed=1, **options), network_of(2, 3, 1, seed=2, **options)
    x = torch.rand(9, 2, dtype=torch.float64)
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))


def test_a_deep_copy_is_equal_and_independent() -> None:
    model = network_of(2, 3, 1)
    x = torch.rand(9, 2, dtype=torch.float64)
    before = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.config["widths"].append(9)
    assert torch.equal(model(x), before)
    assert model.config["widths"] == [2, 3, 1]


@pytest.mark.parametrize("train", [True, False])
def test_intervals_are_parameters_only_where_they_train(train: bool) -> None:
    layer = ReLUKANLayer(2, 3, train_intervals=train)
    trained = {"starts", "ends"} if train else set()
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"} | trained
    assert set(layer.state_dict()) == {"weight", "bias", "starts", "ends"}


def test_each_input_has_intervals_of_its_own() -> None:
    layer = ReLUKANLayer(2, 1)
    with torch.no_grad():
        layer.starts[0, 0] = -9
    assert layer.starts[1, 0] != -9


def test_the_intervals_begin_on_the_lattice() -> None:
    layer = layer_of(1, 1, grid=5, order=3)
    np.testing.assert_allclose(layer.starts[0].detach(), [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8], atol=1e-7)
    np.testing.assert_allclose(layer.ends[0].detach(), [0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6], atol=1e-7)


def test_weights_begin_as_those_of_the_reference_convolution() -> None:
    layer = ReLUKANLayer(20, 30, grid=5, order=3)
    bound = (20 * 8) ** -0.5  # nn.Conv2d: 1/√(fan in)
    assert 0.99 * bound < layer.weight.abs().max() <= bound


# --- the input range


def test_an_input_range_is_mapped_to_the_unit_interval() -> None:
    plain = layer_of(2, 3)
    ranged = layer_of(2, 3, input_range=[[10, 30], [-4, -3]])
    unit = torch.rand(9, 2, dtype=torch.float64)
    x = torch.tensor([10.0, -4.0], dtype=torch.float64) + unit * torch.tensor([20.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(ranged(x), plain(unit), rtol=1e-11, atol=1e-11)


def test_only_the_first_layer_has_the_input_range() -> None:
    model = ReLUKAN([2, 3, 1], input_range=[[0, 2], [0, 4]])
    assert [key for key in model.state_dict() if key.endswith("input_range")] == ["layers.0.input_range"]


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    move=st.sampled_from([0.0, 0.1, 0.6]),
    ranged=st.booleans(),
)
def test_the_spec_computes_what_forward_does(
    normalization: Normalization, seed: int, widths: list[int], move: float, ranged: bool
) -> None:
    span = [[-7.0, 3.0]] * widths[0] if ranged else None
    model = network_of(*widths, grid=3, order=2, move=move, seed=seed, normalization=normalization, input_range=span)
    x = np.random.default_rng(seed).normal(0, 4 if ranged else 0.7, (9, widths[0]))
    expected = model(torch.from_numpy(x)).detach().numpy()
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(model.spec().evaluate(x) / scale, expected / scale, atol=1e-9)


def test_the_spec_carries_the_meaning_it_is_given() -> None:
    spec = network_of(2, 3).spec(task="classification", columns=("a", "b"), labels=("x", "y", "z"))
    assert (spec.task, spec.columns, spec.labels) == ("classification", ("a", "b"), ("x", "y", "z"))


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": 0}, "in_features must be a whole number of at least 1, got 0"),
        ({"out_features": -1}, "out_features must be a whole number of at least 1, got -1"),
        ({"grid": 0}, "grid must be a whole number of at least 1, got 0"),
        ({"grid": 2.0}, "grid must be a whole number of at least 1, got 2.0"),
        ({"grid": True}, "grid must be a whole number of at least 1, got True"),
        ({"power": 0}, "power must be a whole number of at least 1, got 0"),
        ({"power": 9}, "power must be at most 8, got 9"),
        ({"order": -1}, "order must be a whole number of at least 0, got -1"),
        ({"normalization": "none"}, "normalization must be one of ('fixed', 'peak'), got 'none'"),
        ({"input_range": [[0, 1]]}, "input_range must be (2, 2): minimum and maximum, got (1, 2)"),
        (
            {"input_range": [[0, 1], [3, 3]]},
            "input_range needs minimum < maximum, both finite, got [3.0, 3.0] for input 1",
        ),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ReLUKANLayer(**{"in_features": 2, "out_features": 3, **options})
    assert str(caught.value) == message


@pytest.mark.parametrize("widths", [[], [3]])
def test_too_few_widths_are_refused(widths: list[int]) -> None:
    with pytest.raises(InputError, match="widths needs at least an input and an output size, got"):
        ReLUKAN(widths)


def test_an_initialization_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match=r"initialization must be one of \('reference', 'linear'\), got 'zeros'"):
        ReLUKAN([2, 1], initialization="zeros")  # type: ignore[arg-type]


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_an_input_range_that_is_not_finite_is_refused(bound: float) -> None:
    with pytest.raises(InputError, match="input_range needs minimum < maximum, both finite"):
        ReLUKANLayer(1, 1, input_range=[[0.0, bound]])


def test_a_layer_prints_its_sizes_and_options() -> None:
    assert repr(ReLUKANLayer(2, 3)) == (
        "ReLUKANLayer(2, 3, grid=5, order=3, normalization='fixed', power=2, train_intervals=True)"
    )
