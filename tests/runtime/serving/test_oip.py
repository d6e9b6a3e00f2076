"""The protocol's tensors: what is read, what is refused, and what is written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_tools import Rows, as_json, read_json, some_rows

from relukan_deploy.errors import InputError
from relukan_deploy.runtime.serving.oip import (
    InferRequest,
    TooLarge,
    Wanted,
    read_request,
    top_classes,
    write_response,
)

X = some_rows(3, 4)


def body(content: Any) -> bytes:
    return json.dumps(content).encode()


def read(content: Any) -> InferRequest:
    return read_request(body(content), 4)


def tensor(**changed: Any) -> dict[str, Any]:
    """A request whose input differs from a good one in these fields; None leaves a field out."""
    content = as_json(X)
    content["inputs"][0].update(changed)
    content["inputs"][0] = {name: value for name, value in content["inputs"][0].items() if value is not None}
    return content


def binary(x: Rows, behind: bytes | None = None, size: Any = None, **changed: Any) -> tuple[bytes, int]:
    """A request in the binary form, and the length of its JSON."""
    raw = x.astype("<f4").tobytes() if behind is None else behind
    header = body(tensor(data=None, parameters={"binary_data_size": len(raw) if size is None else size}, **changed))
    return header + raw, len(header)


def read_binary(request: tuple[bytes, int]) -> InferRequest:
    return read_request(request[0], 4, request[1])


# --- what is read


def test_numbers_are_the_nearest_float32() -> None:
    assert read(tensor()).x.tobytes() == X.tobytes()


def test_rows_may_be_nested_as_the_shape_is() -> None:
    assert read(tensor(data=X.tolist())).x.tobytes() == X.tobytes()


def test_whole_numbers_are_numbers() -> None:
    assert read(tensor(shape=[1, 4], data=[0, 1, -2, 1 << 63])).x.tolist() == [[0, 1, -2, float(1 << 63)]]


def test_no_rows_are_a_request() -> None:
    assert read(tensor(shape=[0, 4], data=[])).x.shape == (0, 4)


@pytest.mark.parametrize("padding", range(4))
def test_bytes_are_read_wherever_they_begin(padding: int) -> None:
    content, length = binary(X)
    padded = content[: length - 1] + b" " * padding + content[length - 1 :]
    x = read_request(padded, 4, length + padding).x
    assert x.tobytes() == X.tobytes()
    assert x.flags.aligned


def test_bytes_carry_what_json_cannot() -> None:
    odd = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    assert read_binary(binary(odd, shape=[1, 4])).x.tobytes() == odd.tobytes()


def test_no_rows_may_be_bytes() -> None:
    assert read_binary(binary(X[:0], shape=[0, 4])).x.shape == (0, 4)


def test_what_is_not_said_has_its_default() -> None:
    assert read(tensor())[1:] == (None, None, Wanted())


def test_an_id_and_a_timeout_in_microseconds_are_read() -> None:
    request = read(tensor() | {"id": "mine", "parameters": {"timeout": 2_000_000}})
    assert (request.id, request.timeout) == ("mine", 2.0)


def test_a_timeout_of_zero_is_none() -> None:
    assert read(tensor() | {"parameters": {"timeout": 0}}).timeout is None


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"outputs": []}, Wanted()),
        ({"outputs": [{"name": "y"}]}, Wanted()),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}, Wanted(binary=True)),
        ({"parameters": {"binary_data_output": True}}, Wanted(binary=True)),
        ({"parameters": {"binary_data_output": True}, "outputs": [{"name": "y"}]}, Wanted(binary=True)),
        (
            {
                "parameters": {"binary_data_output": True},
                "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
            },
            Wanted(),
        ),
        ({"outputs": [{"name": "y", "parameters": {"classification": 2}}]}, Wanted(2)),
        ({"outputs": [{"name": "y", "parameters": {"classification": 0}}]}, Wanted()),
    ],
)
def test_the_form_of_the_answer_is_read(more: dict[str, Any], wanted: Wanted) -> None:
    assert read(tensor() | more).wanted == wanted


# --- what is refused

WRONG: list[tuple[Any, str]] = [
    (1, "must be a JSON object"),
    ([], "must be a JSON object"),
    ({}, "inputs must be a list of one tensor"),
    ({"inputs": {}}, "inputs must be a list of one tensor"),
    ({"inputs": []}, "inputs must be a list of one tensor"),
    ({"inputs": ["x"]}, "inputs must be a list of one tensor"),
    ({"inputs": [*as_json(X)["inputs"], *as_json(X)["inputs"]]}, "inputs must be a list of one tensor"),
    (tensor(name=None), "only input is 'x', got None"),
    (tensor(name="z"), "only input is 'x', got 'z'"),
    (tensor(name=["x"]), "only input is 'x'"),
    (tensor(datatype="FP64"), "datatype FP32, got 'FP64'"),
    (tensor(datatype=None), "datatype FP32, got None"),
    (tensor(shape=None), "shape .rows, 4., got None"),
    (tensor(shape=12), "shape .rows, 4., got 12"),
    (tensor(shape=[12]), "shape .rows, 4., got .12."),
    (tensor(shape=[4]), r"for a single row send \[1, 4\]"),
    (tensor(shape=[3, 4, 1]), "shape .rows, 4."),
    (tensor(shape=[4, 3]), "shape .rows, 4."),
    (tensor(shape=[-3, 4]), "shape .rows, 4."),
    (tensor(shape=[-1, -4]), "shape .rows, 4."),
    (tensor(shape=[True, 4]), "shape .rows, 4."),
    (tensor(shape=[3.0, 4]), "shape .rows, 4."),
    (tensor(shape=["3", 4]), "shape .rows, 4."),
    (tensor(shape=[1 << 62, 4]), "numbers, got 12"),
    (tensor(shape=[1 << 64, 4]), "shape .rows, 4."),
    (tensor(data=None), "needs data, a list of numbers, got None"),
    (tensor(data="12"), "needs data, a list of numbers"),
    (tensor(data={}), "needs data, a list of numbers"),
    (tensor(data=[]), "needs 12 numbers, got 0"),
    (tensor(data=[0.5] * 13), "needs 12 numbers, got 13"),
    (tensor(data=[None] * 12), "must hold numbers; NaN and infinity need the binary form"),
    (tensor(data=["1.5"] * 12), "must hold numbers"),
    (tensor(data=[True] * 12), "must hold numbers"),
    (tensor(data=[0.5] * 11 + [[]]), "must hold numbers"),
    (tensor(data=[0.5] * 11 + [1e39]), "beyond the range of FP32"),
    (tensor(data=[[0.5] * 3] * 4), "3 rows of 4 numbers"),
    (tensor(data=[[0.5] * 4] * 2), "3 rows of 4 numbers"),
    (tensor(data=[[0.5] * 4] * 2 + [[0.5, [], 0.5, 0.5]]), "must hold numbers"),
    (tensor(data=[[[0.5] * 4]] * 3), "3 rows of 4 numbers"),
    (tensor(parameters=1), "parameters must be an object"),
    (tensor(parameters={"binary_data_size": 48}), "both data and binary_data_size"),
    (tensor(data=None, parameters={"binary_data_size": 48}), "is 48, and 0 bytes follow the JSON"),
    (tensor(data=None, parameters={"shared_memory_region": "r"}), "shared memory, which this server does not read"),
    (tensor() | {"parameters": []}, "parameters must be an object"),
    (tensor() | {"parameters": {"timeout": -1}}, "timeout must be a whole number of microseconds"),
    (tensor() | {"parameters": {"timeout": "1"}}, "timeout must be a whole number of microseconds"),
    (tensor() | {"parameters": {"timeout": 0.5}}, "timeout must be a whole number of microseconds"),
    (tensor() | {"parameters": {"timeout": True}}, "timeout must be a whole number of microseconds"),
    (tensor() | {"parameters": {"timeout": 1 << 63}}, "timeout must be a whole number of microseconds"),
    (tensor() | {"parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
    (tensor() | {"id": 1}, "id must be a string"),
    (tensor() | {"outputs": {}}, "outputs must be a list of one tensor"),
    (tensor() | {"outputs": 0}, "outputs must be a list of one tensor"),
    (tensor() | {"outputs": [1]}, "outputs must be a list of one tensor"),
    (tensor() | {"outputs": [{"name": "y"}, {"name": "y"}]}, "outputs must be a list of one tensor"),
    (tensor() | {"outputs": [{"name": "z"}]}, "only output is 'y', got 'z'"),
    (tensor() | {"outputs": [{}]}, "only output is 'y', got None"),
    (tensor() | {"outputs": [{"name": "y", "parameters": {"classification": -1}}]}, "a number of classes"),
    (tensor() | {"outputs": [{"name": "y", "parameters": {"classification": True}}]}, "a number of classes"),
    (tensor() | {"outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]}, "must be true or false"),
    (tensor() | {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, "does not write"),
]


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_a_wrong_request_is_told_what_is_wrong(content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        read(content)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff", b"\x00" * 16, b"NaN", b'"\xed\xa0\x80"', b"[" * 100_000, b'{"a":' * 5000, b"{} {}", b"1e999"],
)
def test_what_is_not_json_is_told_so(raw: bytes) -> None:
    with pytest.raises(InputError, match="the request is not JSON"):
        read_request(raw, 4)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (binary(X, behind=b"\0" * 47), "takes 48 bytes, got 47"),
        (binary(X, behind=b"\0" * 49), "takes 48 bytes, got 49"),
        (binary(X, size=47), "is 47, and 48 bytes follow"),
        (binary(X, size=-48), "is -48, and 48 bytes follow"),
        (binary(X, size="48"), "is '48', and 48 bytes follow"),
        (binary(X, size=1 << 62), "48 bytes follow"),
        (binary(X, shape=[1 << 62, 4]), "got 48"),
        ((body(tensor()) + b"\0" * 48, len(body(tensor()))), "48 bytes follow the JSON, and input 'x' has no"),
        ((body(tensor()), 1 << 40), "should be 1099511627776 bytes long, the whole body is"),
        ((b"\0" * 48, 0), "is not JSON"),
    ],
)
def test_bytes_that_do_not_fit_are_told_so(request_: tuple[bytes, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_binary(request_)


def test_json_has_a_limit_of_its_own() -> None:
    behind, length = binary(X)
    request = behind[:length] + b" " * ((8 << 20) - length)
    assert read_request(request + behind[length:], 4, len(request)).x.tobytes() == X.tobytes()
    with pytest.raises(TooLarge, match="8388608 bytes, got 8388609: send the tensor in the binary form"):
        read_request(request + b" " + behind[length:], 4, len(request) + 1)


def test_a_message_is_short_however_much_came() -> None:
    for content in (tensor(name="z" * 100_000), tensor(shape=list(range(100_000))), {"inputs": "x" * 100_000}):
        with pytest.raises(InputError) as told:
            read(content)
        assert len(str(told.value)) < 300


# --- fuzzing


def outcome(raw: bytes, length: int | None = None) -> None:
    """Reads it, or refuses it as it should."""
    try:
        request = read_request(raw, 4, length)
    except InputError:
        return
    assert request.x.dtype == np.float32
    assert request.x.ndim == 2
    assert request.x.shape[1] == 4


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
PLACES: list[Callable[[Any], Any]] = [
    lambda value: value,
    lambda value: {"inputs": value},
    lambda value: {"inputs": [value]},
    lambda value: tensor() | {"outputs": value},
    lambda value: tensor() | {"outputs": [{"name": "y", "parameters": value}]},
    lambda value: tensor() | {"outputs": [{"name": "y", "parameters": {"classification": value}}]},
    lambda value: tensor() | {"parameters": value},
    lambda value: tensor() | {"parameters": {"timeout": value}},
    lambda value: tensor() | {"id": value},
    *(lambda value, name=name: tensor(**{name: value}) for name in ("name", "datatype", "shape", "data", "parameters")),
]


@given(st.sampled_from(PLACES), ANYTHING)
def test_anything_anywhere_is_read_or_refused(place: Callable[[Any], Any], value: Any) -> None:
    outcome(body(place(value)))


def test_ten_thousand_mutations_are_read_or_refused() -> None:
    generator = random.Random(0)
    good = [(body(tensor() | {"id": "a", "outputs": [{"name": "y"}]}), None), binary(X)]
    for _ in range(10_000):
        raw, length = generator.choice(good)
        mutated = bytearray(raw)
        for _ in range(generator.randint(1, 6)):
            where = generator.randrange(len(mutated))
            kind = generator.randrange(3)
            if kind == 0:
                mutated[where] = generator.randrange(256)
            elif kind == 1:
                del mutated[where : where + generator.randint(1, 9)]
            else:
                mutated[where:where] = mutated[generator.randrange(len(mutated)) :][: generator.randint(1, 40)]
            if not mutated:
                break
        outcome(bytes(mutated), length)


# --- what is written

DEFAULT = Wanted()


def answer(y: Rows, wanted: Wanted = DEFAULT, labels: Any = None, id: str | None = None) -> tuple[Any, bytes]:  # noqa: A002
    """The JSON of a response, and what follows it."""
    content, length = write_response("plants", "7", InferRequest(X, id, None, wanted), y, labels)
    return json.loads(content[:length]), content[len(content) if length is None else length :]


def test_an_answer_names_its_model_and_version() -> None:
    told, behind = answer(X)
    assert (told["model_name"], told["model_version"], "id" in told, behind) == ("plants", "7", False, b"")


def test_an_id_is_given_back() -> None:
    assert answer(X, id="ä🌿")[0]["id"] == "ä🌿"


@pytest.mark.parametrize("y", [X, X[:0], X[:, ::2], np.asfortranarray(X)])
def test_numbers_come_back_to_the_bit(y: Rows) -> None:
    assert read_json(answer(y)[0]).tobytes() == y.tobytes()


def test_every_float32_survives_json() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 40_000, dtype=np.uint32).view(np.float32)
    y = bits[np.isfinite(bits)].reshape(1, -1)
    assert read_json(answer(y)[0]).tobytes() == y.tobytes()


def test_what_json_cannot_say_is_null() -> None:
    told, _ = answer(np.array([[np.nan, np.inf, 0.5]], np.float32))
    assert told["outputs"][0]["data"] == [None, None, 0.5]


def test_bytes_follow_the_json_where_wanted() -> None:
    odd = np.array([[np.nan, 1.5]], np.float32)
    told, behind = answer(odd, Wanted(binary=True))
    assert told["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    ]
    assert behind == odd.tobytes()


LOGITS = np.array([[0.1, 2.5, -1.0], [np.nan, 0.5, 0.5]], np.float32)


def test_classes_come_largest_first_with_their_labels() -> None:
    assert top_classes(LOGITS, 2, ("fern", "moss", "oak")) == ["2.5:1:moss", "0.1:0:fern", "0.5:1:moss", "0.5:2:oak"]


def test_classes_without_labels_have_their_index() -> None:
    assert top_classes(LOGITS[:1], 1) == ["2.5:1"]


def test_nan_comes_last() -> None:
    assert top_classes(LOGITS[1:], 3)[2] == "nan:0"


def test_there_are_no_more_classes_than_outputs() -> None:
    told, _ = answer(LOGITS, Wanted(9))
    assert told["outputs"][0]["shape"] == [2, 3]


def test_there_is_a_most_of_classes() -> None:
    assert len(top_classes(np.zeros((1 << 15, 3), np.float32), 2)) == 1 << 16
    with pytest.raises(InputError, match="at most 65536 classes at once, not 3 for each of 32768 rows"):
        top_classes(np.zeros((1 << 15, 3), np.float32), 3)


def test_no_rows_have_no_classes() -> None:
    told, _ = answer(LOGITS[:0], Wanted(2))
    assert (told["outputs"][0]["shape"], told["outputs"][0]["data"]) == ([0, 2], [])


def test_classes_as_bytes_are_what_tritonclient_reads() -> None:
    from tritonclient.utils import deserialize_bytes_tensor

    told, behind = answer(LOGITS, Wanted(1, binary=True), labels=("fern", "moß", "oak"))
    assert told["outputs"][0]["datatype"] == "BYTES"
    assert [each.decode() for each in deserialize_bytes_tensor(behind)] == ["2.5:1:moß", "0.5:1:moß"]
