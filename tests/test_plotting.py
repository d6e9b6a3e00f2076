"""Pictures: what is drawn is what the network computes, and all of it can be read."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from networks import Array, bump_layers, random_network, spline_layers, spline_network
from scipy.interpolate import BSpline
from scipy.stats import pearsonr

from relukan_deploy.errors import InputError, MissingDependencyError
from relukan_deploy.plotting import check_picture, history_path, plot, plot_history, write_figure
from relukan_deploy.spec import KanSpec
from relukan_deploy.splines import Function

if importlib.util.find_spec("matplotlib") is None:
    pytest.skip("matplotlib is not installed: pip install '.[plot]'", allow_module_level=True)

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MakeSpec = Callable[..., KanSpec]

DATA = Path(__file__).parent / "data"
LONG = "what was measured with a ruler on a $very$ long afternoon, in millimetres {} below the line"


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What `plot_history` reads of an epoch."""

    number: int
    loss: float
    held_out_loss: float
    score: float


def history(*losses: float) -> Any:
    return [Epoch(index, loss, 1.5 * loss, 1 - 1.5 * loss) for index, loss in enumerate(losses, start=1)]


def rows_for(spec: KanSpec, rows: int = 300) -> Array:
    return np.random.default_rng(0).uniform(0, 1, (rows, spec.in_features))


def edge(axes: Axes) -> Line2D:
    """The heavy line, which is drawn last."""
    return axes.lines[-1]


def points(line: Line2D) -> tuple[Array, Array]:
    x, y = np.asarray(line.get_data(), dtype=np.float64)
    return x, y


def names(axes: Axes) -> tuple[str, str]:
    return axes.get_xlabel(), axes.get_title(loc="left").removeprefix("→ ")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def boxes(figure: Figure) -> dict[str, Any]:
    """Where each text that can be seen lies, in pixels."""
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.draw_without_rendering()
    unseen = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in beyond(axis)}
    drawn = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible()]
    seen = [text for text in drawn if text.get_text() and text not in unseen]
    return {f"{text.get_text()} {index}": text.get_window_extent() for index, text in enumerate(seen)}


def beyond(axis: Axis) -> list[Text]:
    """The labels of ticks outside the limits, which Matplotlib has and does not draw."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick.label1 for tick in ticks if not low <= tick.get_loc() <= high]


def assert_legible(figure: Figure) -> None:
    found = boxes(figure)
    assert len(found) > 5
    outside = [text for text, box in found.items() if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1]
    assert not outside
    assert not [text for text, box in found.items() if box.y1 > figure.bbox.y1]
    assert not [(a, b) for (a, one), (b, other) in itertools.combinations(found.items(), 2) if one.overlaps(other)]
    assert min(float(text.get_fontsize()) for text in figure.findobj(Text) if isinstance(text, Text)) >= 6


# --- the curves


def bump_edge(spec: KanSpec, layer: int, source: int, target: int, x: Array) -> Array:
    """The paper's formula, for one edge."""
    each = bump_layers(spec)[layer]
    y = np.zeros_like(x)
    for s, e, c in zip(each.starts[source], each.ends[source], each.coefficients[target, source], strict=True):
        if s < e:
            y += c * (np.clip(e - x, 0, None) * np.clip(x - s, 0, None) * 4 / (e - s) ** 2) ** each.power
    return y


@pytest.mark.parametrize("power", [1, 2, 5])
@pytest.mark.parametrize("with_data", [False, True])
def test_curves_are_the_edges_of_bumps(power: int, with_data: bool) -> None:
    spec = random_network(0, [2, 3, 1], grid=50, power=power)
    figure = plot(spec, rows_for(spec) if with_data else None)
    places = [(0, i, o) for i in range(2) for o in range(3)] + [(1, i, 0) for i in range(3)]
    assert len(figure.axes) == len(places)
    for axes, (layer, source, target) in zip(figure.axes, places, strict=True):
        for line in axes.lines:
            x, y = points(line)
            np.testing.assert_allclose(y, bump_edge(spec, layer, source, target, x), atol=1e-12)
        low, high = spec.layers[layer].domain[source]
        x, _ = points(axes.lines[0])
        assert (x[0], x[-1]) == pytest.approx((low, high)) or with_data
        assert len(x) > 400


def test_curves_are_the_edges_of_splines() -> None:
    spec = spline_network(0, [2, 2], powers=2)
    (layer,) = spline_layers(spec)
    for axes, (source, target) in zip(plot(spec).axes, itertools.product(range(2), range(2)), strict=True):
        x, y = points(edge(axes))
        spline = BSpline(layer.knots[source], layer.coefficients[target, source], 3, extrapolate=False)
        inside = (x >= layer.knots[source, 3]) & (x <= layer.knots[source, -4])  # where scipy defines it
        expected = np.nan_to_num(spline(x)) + layer.silu[target, source] * x / (1 + np.exp(-x))
        expected += layer.polynomial[target, source] @ [x, x**2]
        assert inside.sum() > 100
        np.testing.assert_allclose(y[inside], expected[inside], atol=1e-12)


def test_edges_of_an_output_and_its_bias_add_up_to_the_answers() -> None:
    spec = random_network(1, [4, 3])
    x = rows_for(spec)
    figure = plot(spec, x)
    answers = np.tile(bump_layers(spec)[0].bias, (len(x), 1))
    for axes, (source, target) in zip(figure.axes, itertools.product(range(4), range(3)), strict=True):
        answers[:, target] += np.interp(x[:, source], *points(edge(axes)))
    np.testing.assert_allclose(answers, spec.evaluate(x), atol=1e-3 * np.abs(answers).max())


def test_the_heavy_line_ends_where_rows_end() -> None:
    spec = random_network(0, [1, 1])
    (axes,) = plot(spec, np.array([[0.2], [0.5], [0.9]])).axes
    assert points(edge(axes))[0][[0, -1]] == pytest.approx([0.2, 0.9])
    assert points(axes.lines[0])[0][[0, -1]] == pytest.approx(spec.domain[0])


def test_rows_beyond_the_domain_are_in_the_picture() -> None:
    spec = random_network(0, [1, 1])
    (axes,) = plot(spec, np.linspace(0, 9, 100)[:, np.newaxis]).axes
    x, y = points(edge(axes))
    assert x[-1] > 8.5
    assert not y[x > 2].any()


def test_bars_are_the_histogram_of_what_reaches_the_input() -> None:
    spec = random_network(0, [3, 2, 1])
    x = rows_for(spec)
    hidden = KanSpec(bump_layers(spec)[:1]).evaluate(x)
    for axes, values in zip(plot(spec, x).axes[6:], hidden.T, strict=True):
        (bars,) = axes.patches
        counts, edges, _ = bars.get_data()  # type: ignore[attr-defined]
        assert pearsonr(counts, np.histogram(values, edges)[0]).statistic == pytest.approx(1)
        assert (edges[0], edges[-1]) == pytest.approx((values.min(), values.max()))
    assert not plot(spec).axes[0].patches


# --- strength


def test_line_weights_are_in_the_order_of_the_edges_deviations() -> None:
    spec = random_network(2, [5, 4])
    x = rows_for(spec) ** 3
    weights = [edge(axes).get_linewidth() for axes in plot(spec, x).axes]
    deviations = [
        bump_edge(spec, 0, source, target, x[:, source]).std()
        for source, target in itertools.product(range(5), range(4))
    ]
    assert pearsonr(weights, deviations).statistic == pytest.approx(1)
    assert max(weights) == 3
    assert pearsonr([edge(axes).get_linewidth() for axes in plot(spec).axes], deviations).statistic < 0.99


def test_a_layer_with_many_edges_shows_its_strongest_and_how_many_it_does_not() -> None:
    spec = random_network(3, [20, 8, 1])
    x = rows_for(spec)
    figure = plot(spec, x)
    panels = figure.axes[:24]
    weights = [edge(axes).get_linewidth() for axes in panels]
    assert weights == sorted(weights, reverse=True)
    deviations = np.array([[bump_edge(spec, 0, i, o, x[:, i]).std() for o in range(8)] for i in range(20)])
    strongest = np.argsort(-deviations, axis=None)[:24]
    digits = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
    shown = [tuple(int(name.translate(digits)[1:]) for name in names(axes)) for axes in panels]
    assert shown == [divmod(int(index), 8) for index in strongest]
    assert "the 24 strongest of 160 edges; 136 are not shown" in texts(figure)
    assert "8 edges" in texts(figure)
    assert len(figure.axes) == 24 + 8


@pytest.mark.parametrize(("most", "panels"), [(1, 6 + 6), (13, 12 + 12), (10_000, 5 * 4 + 4 * 3)])
def test_as_many_edges_as_asked_for_in_whole_rows(most: int, panels: int) -> None:
    spec = random_network(3, [5, 4, 3])
    assert len(plot(spec, most=most).axes) == panels


def test_a_constant_edge_is_a_thin_level_line() -> None:
    spec = random_network(0, [2, 1])
    (layer,) = bump_layers(spec)
    coefficients = layer.coefficients.copy()
    coefficients[:, 1] = 0
    spec = KanSpec((dataclasses.replace(layer, coefficients=coefficients),))
    for data in (None, rows_for(spec), np.zeros((1, 2))):
        axes = plot(spec, data).axes[1]
        assert edge(axes).get_linewidth() == 0.5
        assert not points(edge(axes))[1].any()
        assert np.diff(axes.get_ylim())[0] > 0.5


def test_a_network_of_zeros_can_be_drawn() -> None:
    spec = random_network(0, [2, 3, 1])
    layers = tuple(dataclasses.replace(each, coefficients=0 * each.coefficients) for each in bump_layers(spec))
    assert_legible(plot(KanSpec(layers), rows_for(spec)))


def test_named_functions_are_drawn_even_where_they_have_a_pole() -> None:
    (layer,) = spline_layers(spline_network(0, [2, 2]))
    functions = (Function("sin", 0, 1, 3.0, 0.5, 2.0, -1, 1), Function("1/x", 1, 0, 1.0, 0.0, 0.1, -1, 1))
    named = dataclasses.replace(layer, coefficients=0 * layer.coefficients, silu=0 * layer.silu, functions=functions)
    spec = KanSpec((named, layer))
    figure = plot(spec, np.linspace(-1, 1, 201)[:, np.newaxis] * [1, 1])
    x, y = points(edge(figure.axes[1]))
    np.testing.assert_allclose(y, 2 * np.sin(3 * x + 0.5), atol=1e-12)
    assert all(np.isfinite(axes.get_ylim()).all() for axes in figure.axes)
    assert_legible(figure)


# --- names


def test_names_are_those_of_the_network(make_spec: MakeSpec) -> None:
    spec = make_spec((2, 1, 2), columns=("width", "height"), targets=("mass", "cost"))
    expected = [("width", "h₀"), ("height", "h₀"), ("h₀", "mass"), ("h₀", "cost")]
    assert [names(axes) for axes in plot(spec).axes] == expected
    spec = make_spec((1, 3), task="classification", targets=("kind",), labels=("fern", "moss", "oak"))
    assert [names(axes) for axes in plot(spec).axes] == [("x₀", "fern"), ("x₀", "moss"), ("x₀", "oak")]


def test_a_network_without_names_has_numbers(make_spec: MakeSpec) -> None:
    assert [names(axes) for axes in plot(make_spec((1, 1, 12))).axes][-1] == ("h₀", "y₁₁")


def test_edges_into_a_product_are_its_factors() -> None:
    (layer,) = spline_layers(spline_network(0, [1, 3]))
    spec = KanSpec((dataclasses.replace(layer, products=((0,), (1, 2)), offset=np.zeros(2)),), targets=("a", "b"))
    assert [names(axes)[1] for axes in plot(spec).axes] == ["a", "factor of b", "factor of b"]


@pytest.mark.parametrize("widths", [(1, 1), (2, 5, 1), (64, 16, 10)])
def test_every_text_is_in_the_figure_and_none_is_on_another(make_spec: MakeSpec, widths: tuple[int, ...]) -> None:
    columns = tuple(LONG.format(index) for index in range(widths[0]))
    spec = make_spec(widths, columns=columns, targets=tuple(f"{LONG.format(index)}\nW" for index in range(widths[-1])))
    assert_legible(plot(spec, rows_for(spec)))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 12345.0, 1e9])
def test_numbers_of_any_size_have_room(make_spec: MakeSpec, scale: float) -> None:
    (layer,) = bump_layers(make_spec((6, 1)))
    scaled = {name: getattr(layer, name) * scale for name in ("starts", "ends", "coefficients")}
    spec = KanSpec((dataclasses.replace(layer, **scaled),))
    assert_legible(plot(spec, rows_for(spec) * scale))


def test_a_long_name_keeps_its_ends(make_spec: MakeSpec) -> None:
    (axes,) = plot(make_spec((1, 1), columns=("first" + "x" * 5000 + "last",))).axes
    assert axes.get_xlabel().startswith("first")
    assert axes.get_xlabel().endswith("last")
    assert "…" in axes.get_xlabel()


# --- what may be given


def test_a_checkpoint_and_its_path_give_the_same_picture(tmp_path: Path) -> None:
    from relukan_deploy import ReLUKAN, load_checkpoint, save

    model, path = ReLUKAN([2, 1]), tmp_path / "model.pt"
    save(model, path, columns=("a", "b"))
    for each in (path, str(path), load_checkpoint(path), model.spec(columns=("a", "b")), model):
        axes = plot(each).axes[1]
        assert names(axes) == ("x₁" if each is model else "b", "y₀")
        x, y = points(edge(axes))
        np.testing.assert_allclose(y, bump_edge(model.spec(), 0, 1, 0, x), atol=1e-12)


def test_a_network_of_pykan_is_drawn() -> None:
    assert len(plot(DATA / "pykan_2_5_1_g5k3_fit.pt", np.load(DATA / "pykan_2_5_1_g5k3_fit.npz")["x"]).axes) == 15


def test_many_rows_look_as_some_of_them_do() -> None:
    spec = random_network(0, [2, 2])
    few, many = (plot(spec, rows_for(spec, rows)) for rows in (4096, 200_000))
    for one, other in zip(few.axes, many.axes, strict=True):
        assert edge(one).get_linewidth() == pytest.approx(edge(other).get_linewidth(), abs=0.1)


@pytest.mark.parametrize("data", [np.zeros((3, 3)), np.zeros(2), np.zeros((0, 2))])
def test_rows_that_do_not_fit_are_refused(data: Array) -> None:
    with pytest.raises(InputError, match=r"data must be \(rows, 2\) with at least one row, got \("):
        plot(random_network(0, [2, 1]), data)


def test_rows_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="data must be finite, got NaN or infinity in it"):
        plot(random_network(0, [2, 1]), [[0, np.nan]])


def test_no_edges_are_refused() -> None:
    with pytest.raises(InputError, match="most must be at least 1, got 0"):
        plot(random_network(0, [2, 1]), most=0)


# --- the training curve


def test_losses_and_the_best_epoch_are_in_the_training_curve() -> None:
    epochs = history(1.0, 0.3, 0.1, 0.2)
    (axes,) = (figure := plot_history(epochs)).axes
    lines = {str(line.get_label()): points(line) for line in axes.lines}
    np.testing.assert_array_equal(lines["training"], [[1, 2, 3, 4], [1.0, 0.3, 0.1, 0.2]])
    np.testing.assert_allclose(lines["held out"][1], [1.5, 0.45, 0.15, 0.3])
    assert np.ravel(lines["best epoch: 3, score 0.8500"]) == pytest.approx([3, 0.15])
    assert axes.get_yscale() == "log"
    assert_legible(figure)


def test_of_two_epochs_with_one_score_the_best_has_the_smaller_loss() -> None:
    epochs: Any = [Epoch(1, 1, 0.5, 0.9), Epoch(2, 1, 0.4, 0.9), Epoch(3, 1, 0.6, 0.9)]
    (axes,) = plot_history(epochs).axes
    assert "best epoch: 2, score 0.9000" in [line.get_label() for line in axes.lines]


def test_a_loss_of_zero_has_a_linear_axis() -> None:
    (axes,) = plot_history(history(1.0, 0.0)).axes
    assert axes.get_yscale() == "linear"


def test_one_epoch_can_be_drawn_and_none_is_refused() -> None:
    assert_legible(plot_history(history(0.5)))
    with pytest.raises(InputError, match="the history is empty"):
        plot_history([])


# --- files


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, suffix: str, begins: bytes) -> None:
    spec = random_network(0, [2, 1])
    for name in ("one", "two"):
        write_figure(plot(spec, rows_for(spec)), tmp_path / f"{name}{suffix}")
    content = (tmp_path / f"one{suffix}").read_bytes()
    assert content == (tmp_path / f"two{suffix}").read_bytes()
    assert content.startswith(begins)


def test_a_name_in_signs_that_no_font_has_is_written(make_spec: MakeSpec, tmp_path: Path) -> None:
    write_figure(plot(make_spec((1, 1), columns=("\ue123 \udcff",))), tmp_path / "edges.png")


@pytest.mark.parametrize("name", ["edges", "edges.jpg", "edges.png.pt"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"expected a name ending in \.png, \.svg or \.pdf"):
        check_picture(tmp_path / name)
    with pytest.raises(InputError, match=r"expected a name ending in"):
        write_figure(plot_history(history(0.5)), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "edges.png").mkdir()
    with pytest.raises(InputError, match=r"edges\.png is a folder"):
        check_picture(tmp_path / "edges.png")


def test_a_picture_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, path = plot_history(history(0.5)), tmp_path / "edges.png"
    path.write_bytes(b"old")

    def fail(written: Path, **options: Any) -> None:
        written.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        write_figure(figure, path)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]


def test_the_training_curve_lies_beside_the_edges() -> None:
    assert history_path("runs/edges.v2.svg") == Path("runs/edges.v2-training.svg")


def test_without_matplotlib_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import relukan_deploy.plotting as plotting\n"
        "for call, given in ((plotting.plot, None), (plotting.plot_history, []), (plotting.check_picture, 'a.png')):\n"
        "    try:\n"
        "        call(given)\n"
        "    except plotting.MissingDependencyError as error:\n"
        "        print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(MissingDependencyError("A picture", "matplotlib", "plot"))] * 3


def test_no_window_and_no_setting_of_matplotlib_is_touched() -> None:
    code = (
        "import matplotlib, sys; before = matplotlib.rcParams.copy()\n"
        "from relukan_deploy.plotting import plot\n"
        "from relukan_deploy.spec import KanSpec, LayerSpec\n"
        "plot(KanSpec((LayerSpec([[0]], [[1]], [[[1]]], [0]),)))\n"
        "print(before == matplotlib.rcParams.copy(), 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
