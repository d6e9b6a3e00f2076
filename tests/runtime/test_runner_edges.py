"""What every runner does between the caller's rows and the graph's tensors."""

from __future__ import annotations

from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from relukan_deploy.runtime.runner import _from_bfloat16, _to_bfloat16, as_rows, from_graph, parts, to_graph
from relukan_deploy.spec import Layout

ROWS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 5)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
LAYOUTS = st.sampled_from(get_args(Layout))
BITS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50)


@given(rows=st.integers(0, 500), most=st.integers(1, 600))
def test_parts_take_every_row_once_and_in_order(rows: int, most: int) -> None:
    cut = list(parts(rows, most))
    assert [row for part in cut for row in range(part.start, part.stop)] == list(range(rows))
    assert all(0 < part.stop - part.start <= most for part in cut)


@given(rows=st.integers(1, 500), most=st.integers(1, 600))
def test_parts_are_as_few_and_as_even_as_can_be(rows: int, most: int) -> None:
    sizes = [part.stop - part.start for part in parts(rows, most)]
    assert len(sizes) == -(-rows // most)
    assert max(sizes) - min(sizes) <= 1


def test_float32_rows_are_not_copied() -> None:
    x = np.ones((4, 3), np.float32)
    assert as_rows(x, 3) is x


@given(rows=ROWS, layout=LAYOUTS)
def test_the_features_are_on_axis_1_and_the_batch_where_the_layout_says(rows: NDArray[Any], layout: Layout) -> None:
    value = to_graph(rows, layout, "fp32")
    batch, features = rows.shape
    if layout == "batch-last":
        assert value.shape == (1, features, 1, batch)
        assert all(value[0, f, 0, b] == rows[b, f] for b in range(batch) for f in range(features))
    else:
        assert value.shape == (batch, features, 1)
        assert all(value[b, f, 0] == rows[b, f] for b in range(batch) for f in range(features))
    assert value.flags.c_contiguous


@given(rows=ROWS, layout=LAYOUTS)
def test_there_and_back_nothing_changes_in_float32(rows: NDArray[Any], layout: Layout) -> None:
    np.testing.assert_array_equal(from_graph(to_graph(rows, layout, "fp32"), layout, "fp32"), rows)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # of the comparison
@given(rows=ROWS, layout=LAYOUTS)
def test_there_and_back_float16_is_numpys(rows: NDArray[Any], layout: Layout) -> None:
    expected = rows.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(from_graph(to_graph(rows, layout, "fp16"), layout, "fp16"), expected)


@given(rows=ROWS, layout=LAYOUTS)
def test_there_and_back_bfloat16_is_that_of_ml_dtypes(rows: NDArray[Any], layout: Layout) -> None:
    expected = rows.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(from_graph(to_graph(rows, layout, "bf16"), layout, "bf16"), expected)


# --- bfloat16, bit for bit


def assert_rounds_as_ml_dtypes(bits: list[int]) -> None:
    values = np.array(bits, np.uint32).view(np.float32)[np.newaxis]
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    ours = _to_bfloat16(values)
    bad = np.isnan(values)
    np.testing.assert_array_equal(ours[~bad], expected.view(np.uint16)[~bad])
    # A NaN need only stay one: its sign and payload mean nothing.
    assert np.isnan(ours.view(ml_dtypes.bfloat16)[bad].astype(np.float32)).all()


@given(bits=BITS)
@example(bits=[0x00000000, 0x80000000])  # zeros
@example(bits=[0x7F800000, 0xFF800000])  # infinities
@example(bits=[0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF])  # NaN, quiet and signalling
@example(bits=[0x00000001, 0x807FFFFF, 0x00008000, 0x00018000, 0x00007FFF])  # subnormals
@example(bits=[0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF])  # ties, and just beside
@example(bits=[0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF])  # the largest: infinite, and not
def test_float32_is_rounded_as_ml_dtypes_rounds_it(bits: list[int]) -> None:
    assert_rounds_as_ml_dtypes(bits)


@given(upper=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=50))
def test_ties_go_to_even(upper: list[int]) -> None:
    assert_rounds_as_ml_dtypes([value << 16 | 0x8000 for value in upper])


def test_every_bfloat16_is_read_as_ml_dtypes_reads_it() -> None:
    bits = np.arange(2**16, dtype=np.uint16)[np.newaxis]
    with np.errstate(invalid="ignore"):
        expected = bits.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(_from_bfloat16(bits), expected)


def test_every_bfloat16_survives_the_way_there_and_back() -> None:
    bits = np.arange(2**16, dtype=np.uint16)[np.newaxis]
    values = _from_bfloat16(bits)
    there = _to_bfloat16(values)
    np.testing.assert_array_equal(there[~np.isnan(values)], bits[~np.isnan(values)])
