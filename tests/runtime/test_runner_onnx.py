"""ONNX Runtime on a CPU, asked in every way a caller may ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from relukan_deploy.api import export
from relukan_deploy.errors import InputError
from relukan_deploy.runtime import Runner, load
from relukan_deploy.spec import KanSpec, Layout

CPU = "onnxruntime-cpu"


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", params=get_args(Layout))
def layout(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def any_runner(spec: KanSpec, tmp_path_factory: pytest.TempPathFactory, precision: Any, layout: Any) -> Runner:
    folder = tmp_path_factory.mktemp("any") / "bundle"
    return load(export(spec, folder, precision=precision, layout=layout).path, backend=CPU)


@pytest.fixture(scope="module")
def runner(bundle_path: Path) -> Runner:
    return load(bundle_path, backend=CPU)


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return np.random.default_rng(3).uniform(-1, 2, (33, 3)).astype(np.float32)


# --- every precision and layout


@pytest.mark.parametrize("batch", [1, 2, 7, 33])
def test_answers_are_those_of_the_reference(
    any_runner: Runner, spec: KanSpec, x: NDArray[np.float32], precision: str, batch: int
) -> None:
    y = any_runner(x[:batch])
    assert y.shape == (batch, 2)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, spec.evaluate(x[:batch]), rtol=0, atol={"fp32": 1e-5, "fp16": 5e-3}[precision])


def test_the_runner_says_what_it_runs(any_runner: Runner, precision: str, layout: str) -> None:
    assert (any_runner.backend, any_runner.in_features, any_runner.out_features) == (CPU, 3, 2)
    assert (any_runner.artifact.precision, any_runner.artifact.layout) == (precision, layout)


def test_no_rows_give_no_answers(any_runner: Runner) -> None:
    y = any_runner(np.empty((0, 3), np.float32))
    assert y.shape == (0, 2)
    assert y.dtype == np.float32


def test_a_row_is_answered_the_same_alone_and_in_company(
    any_runner: Runner, x: NDArray[np.float32], precision: str
) -> None:
    alone = np.concatenate([any_runner(x[row : row + 1]) for row in range(len(x))])
    np.testing.assert_allclose(alone, any_runner(x), rtol=0, atol={"fp32": 2e-6, "fp16": 4e-3}[precision])


def test_rows_are_not_mixed_up(any_runner: Runner, x: NDArray[np.float32], precision: str) -> None:
    np.testing.assert_allclose(
        any_runner(x[::-1]), any_runner(x)[::-1], rtol=0, atol={"fp32": 2e-6, "fp16": 4e-3}[precision]
    )


@pytest.mark.parametrize("big", [7e4, 1e30, np.float32(3e38)])
def test_far_outside_the_domain_only_the_bias_is_left(
    any_runner: Runner, spec: KanSpec, precision: str, big: float
) -> None:
    x = np.full((2, 3), [[big], [-big]], np.float32)
    np.testing.assert_allclose(any_runner(x), spec.evaluate(x), rtol=0, atol={"fp32": 1e-5, "fp16": 5e-3}[precision])


# --- arrays of other kinds


def strange_views(x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """The same numbers as x, otherwise laid out in memory."""
    wide = np.zeros((2 * len(x), 6), np.float32)
    wide[::2, ::2] = x
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "Fortran order": np.asfortranarray(x),
        "every second row and column": wide[::2, ::2],
        "reversed twice": x[::-1, ::-1].copy()[::-1, ::-1],
        "transposed": x.T.copy().T,
        "unaligned": unaligned,
        "read-only": frozen,
    }


@pytest.mark.parametrize("kind", list(strange_views(np.zeros((1, 3), np.float32))))
def test_the_order_in_memory_does_not_matter(any_runner: Runner, x: NDArray[np.float32], kind: str) -> None:
    np.testing.assert_array_equal(any_runner(strange_views(x)[kind]), any_runner(x))


@pytest.mark.parametrize("dtype", ["float64", "float16", ">f4", "<f8", "longdouble"])
def test_other_floats_are_converted(runner: Runner, x: NDArray[np.float32], dtype: str) -> None:
    given = x.astype(np.float16)  # exact in all of them
    np.testing.assert_array_equal(runner(given.astype(dtype)), runner(given.astype(np.float32)))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_whole_numbers_are_converted(runner: Runner, dtype: str) -> None:
    given = np.array([[0, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(runner(given.astype(dtype)), runner(given.astype(np.float32)))


def test_lists_are_converted(runner: Runner) -> None:
    np.testing.assert_array_equal(runner([[0.5, 0, 1]]), runner(np.array([[0.5, 0, 1]], np.float32)))


def test_a_float64_beyond_float32_is_far_outside(runner: Runner, spec: KanSpec) -> None:
    np.testing.assert_allclose(runner([[1e300, -1e300, 1e39]]), spec.evaluate([[1e30, -1e30, 1e30]]), atol=1e-5)


def test_the_callers_array_is_not_touched(runner: Runner, x: NDArray[np.float32]) -> None:
    before = x.copy()
    runner(x)
    np.testing.assert_array_equal(x, before)


# --- answers


def test_an_answer_is_not_overwritten_by_the_next(any_runner: Runner, x: NDArray[np.float32]) -> None:
    first = any_runner(x)
    kept = first.copy()
    any_runner(x + 0.25)
    np.testing.assert_array_equal(first, kept)


def test_an_answer_is_contiguous_and_can_be_written_to(any_runner: Runner, x: NDArray[np.float32]) -> None:
    flags = any_runner(x).flags
    assert flags.c_contiguous
    assert flags.writeable


def test_more_threads_give_the_same_answers(bundle_path: Path, runner: Runner, x: NDArray[np.float32]) -> None:
    threaded = load(bundle_path, backend=CPU, threads=2)
    np.testing.assert_allclose(threaded(x), runner(x), rtol=0, atol=2e-6)


# --- what cannot be answered


@pytest.mark.parametrize("shape", [(5, 2), (5, 4), (5, 0), (2, 5, 3), (), (4,)])
def test_another_shape_is_refused_with_both_named(runner: Runner, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as raised:
        runner(np.zeros(shape, np.float32))
    assert str(raised.value) == f"x must be (batch, 3), got {shape}"


def test_a_single_row_is_refused_with_what_to_write(runner: Runner) -> None:
    with pytest.raises(InputError, match=r"got \(3,\); for a single row use x\.reshape\(1, 3\)"):
        runner(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 3), object),
        np.zeros((1, 3), complex),
        np.array([["1", "2", "3"]]),
        np.zeros((1, 3), bool),
        np.zeros((1, 3), "datetime64[s]"),
        [[1, None, 2]],
        [["a", 1, 2]],
    ],
    ids=["object", "complex", "text", "bool", "dates", "None in a list", "text in a list"],
)
def test_what_are_no_real_numbers_is_refused(runner: Runner, x: Any) -> None:
    with pytest.raises(InputError, match=r"x must hold real numbers \(float32\), got dtype "):
        runner(x)


def test_rows_of_different_lengths_are_refused(runner: Runner) -> None:
    with pytest.raises(InputError, match=r"x must be \(batch, 3\) numbers: "):
        runner([[1, 2, 3], [4, 5]])


def test_a_closed_runner_says_so(bundle_path: Path, x: NDArray[np.float32]) -> None:
    runner = load(bundle_path, backend=CPU)
    runner.close()
    runner.close()
    with pytest.raises(InputError, match=r"model\.onnx is closed: load the bundle again"):
        runner(x)
