"""The Open Inference Protocol's tensors, in JSON and in its binary form, whatever carries them.

A model has one input, "x" FP32 ``(rows, in)``, and one output, "y" FP32 ``(rows, out)``. What a
request says is checked before anything of its size is allocated, and whatever is wrong with it is an
`InputError` that names the field. JSON has no NaN and no infinity: in the binary form they travel as
they are, in a JSON answer they are null, and a JSON request cannot hold them.
"""

from __future__ import annotations

import itertools
import reprlib
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import orjson

from ..runner import Rows
from ...errors import InputError

__all__ = [
    "INPUT",
    "OUTPUT",
    "InferRequest",
    "TooLarge",
    "Wanted",
    "check_input",
    "pack_strings",
    "read_outputs",
    "read_request",
    "read_timeout",
    "rows_from_bytes",
    "rows_from_numbers",
    "top_classes",
    "write_response",
]

INPUT, OUTPUT = "x", "y"

_WIRE = np.dtype("<f4")
_NUMBERS = {float, int}  # and not bool, which numpy would take for one
_brief = reprlib.repr  # of what came, however large it is
# What the event loop reads and writes at once, while everybody waits: some tens of milliseconds.
_LONGEST_JSON = 8 << 20  # bytes; parsed it takes up to forty times as much
_MOST_CLASSES = 1 << 16


class TooLarge(InputError):  # noqa: N818  as its status code is called
    """A request with more JSON than one may have."""


class Wanted(NamedTuple):
    """The form in which a request wants its answer.

    Attributes:
        classes: how many of the largest outputs of each row, as "value:index:label"; 0 for all of
            them as numbers.
        binary: whether they come behind the JSON as raw bytes; only HTTP asks.
    """

    classes: int = 0
    binary: bool = False


class InferRequest(NamedTuple):
    """What a request says.

    Attributes:
        x: ``(rows, in)`` float32, possibly read-only.
        id: given back with the answer.
        timeout: seconds until nobody waits for the answer any more, or None.
        wanted: the form of the answer.
    """

    x: Rows
    id: str | None
    timeout: float | None
    wanted: Wanted


_JSON, _BINARY = Wanted(), Wanted(binary=True)


def read_request(body: bytes, in_features: int, header_length: int | None = None) -> InferRequest:
    """Reads the body of an inference request.

    Args:
        body: JSON, followed by the tensor's bytes where it is sent in the binary form.
        header_length: how many bytes of it are JSON, or None for all.

    Raises:
        TooLarge: its JSON is longer than 8 MiB, which only numbers in it can be.
        InputError: it is not a request for one tensor of `in_features` columns.
    """
    if header_length is not None and header_length > len(body):
        raise InputError(f"the JSON header should be {header_length} bytes long, the whole body is {len(body)}")
    header = body if header_length is None else body[:header_length]
    if len(header) > _LONGEST_JSON:
        raise TooLarge(
            f"the JSON of a request may have {_LONGEST_JSON} bytes, got {len(header)}: "
            "send the tensor in the binary form"
        )
    try:
        content = orjson.loads(header)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the request is not JSON: {error}") from None
    if type(content) is not dict:
        raise InputError(f"the request must be a JSON object with inputs, got {_brief(content)}")
    parameters = _parameters(content)
    identity = content.get("id")
    if identity is not None and type(identity) is not str:
        raise InputError(f"id must be a string, got {_brief(identity)}")
    x = _read_input(content.get("inputs"), in_features, memoryview(body)[len(header) :])
    default = _BINARY if _flag(parameters, "binary_data_output") else _JSON
    wanted = read_outputs(content.get("outputs"), default)
    return InferRequest(x, identity or None, read_timeout(parameters), wanted)


def _read_input(inputs: Any, in_features: int, behind: memoryview) -> Rows:
    """The tensor that `inputs` describes, from its data or from the bytes behind the JSON."""
    if type(inputs) is not list or len(inputs) != 1 or type(inputs[0]) is not dict:
        raise InputError(f"inputs must be a list of one tensor, {INPUT!r}, got {_brief(inputs)}")
    tensor = inputs[0]
    rows = check_input(tensor.get("name"), tensor.get("datatype"), tensor.get("shape"), in_features)
    parameters = _parameters(tensor)
    if "shared_memory_region" in parameters:
        raise InputError(f"input {INPUT!r} is in shared memory, which this server does not read: send its data")
    if "binary_data_size" not in parameters:
        if behind:
            raise InputError(f"{len(behind)} bytes follow the JSON, and input {INPUT!r} has no binary_data_size")
        return rows_from_numbers(tensor.get("data"), rows, in_features)
    if "data" in tensor:
        raise InputError(f"input {INPUT!r} has both data and binary_data_size: send one of them")
    size = parameters["binary_data_size"]
    if type(size) is not int or size != len(behind):
        raise InputError(f"binary_data_size is {_brief(size)}, and {len(behind)} bytes follow the JSON")
    return rows_from_bytes(behind, rows, in_features)


def check_input(name: Any, datatype: Any, shape: Any, in_features: int) -> int:
    """Gives the number of rows of an input described like this.

    Raises:
        InputError: it is not the model's input.
    """
    if name != INPUT:
        raise InputError(f"the model's only input is {INPUT!r}, got {_brief(name)}")
    if datatype != "FP32":
        raise InputError(f"input {INPUT!r} must have the datatype FP32, got {_brief(datatype)}")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or type(shape[0]) is not int
        or type(shape[1]) is not int
        or shape[0] < 0
        or shape[1] != in_features
    ):
        hint = f"; for a single row send [1, {in_features}]" if shape == [in_features] else ""
        raise InputError(f"input {INPUT!r} must have the shape [rows, {in_features}], got {_brief(shape)}{hint}")
    return shape[0]


def rows_from_numbers(data: Any, rows: int, in_features: int) -> Rows:
    """Rows from a list of numbers, flat or nested as its shape is; read-only.

    Raises:
        InputError: it holds another count, or something that is no FP32 number.
    """
    if type(data) is not list:
        raise InputError(f"input {INPUT!r} needs data, a list of numbers, got {_brief(data)}")
    kinds = set(map(type, data))
    if kinds == {list}:
        if len(data) != rows or any(len(row) != in_features for row in data):
            raise InputError(f"data of input {INPUT!r} must be {rows} rows of {in_features} numbers, as its shape says")
        data = list(itertools.chain.from_iterable(data))
        kinds = set(map(type, data))
    if len(data) != rows * in_features:
        raise InputError(
            f"input {INPUT!r} of shape [{rows}, {in_features}] needs {rows * in_features} numbers, got {len(data)}"
        )
    if not kinds <= _NUMBERS:
        raise InputError(f"data of input {INPUT!r} must hold numbers; NaN and infinity need the binary form")
    try:
        raw = struct.pack(f"<{len(data)}f", *data)  # unlike numpy, it notices what does not fit
    except OverflowError:
        raise InputError(f"data of input {INPUT!r} holds a number beyond the range of FP32") from None
    return np.frombuffer(raw, _WIRE).reshape(rows, in_features)


def rows_from_bytes(raw: bytes | memoryview, rows: int, in_features: int) -> Rows:
    """Rows from little-endian floats, row after row; read-only unless they had to be copied.

    Raises:
        InputError: the shape takes another number of bytes.
    """
    if len(raw) != rows * in_features * 4:
        raise InputError(
            f"input {INPUT!r} of shape [{rows}, {in_features}] takes {rows * in_features * 4} bytes, got {len(raw)}"
        )
    array = np.frombuffer(raw, _WIRE).reshape(rows, in_features)
    return np.require(array, np.float32, "A")  # behind JSON of any length they are seldom aligned


def read_outputs(outputs: Any, default: Wanted = _JSON) -> Wanted:
    """The form in which the outputs of a request are wanted.

    Args:
        outputs: what it lists, each with a name and, if any, parameters; None or [] for all there are.

    Raises:
        InputError: they are not the model's one output, or in no form there is.
    """
    if outputs is None or outputs == []:
        return default
    if type(outputs) is not list or len(outputs) != 1 or type(outputs[0]) is not dict:
        raise InputError(f"outputs must be a list of one tensor, {OUTPUT!r}, got {_brief(outputs)}")
    if outputs[0].get("name") != OUTPUT:
        raise InputError(f"the model's only output is {OUTPUT!r}, got {_brief(outputs[0].get('name'))}")
    parameters = _parameters(outputs[0])
    if "shared_memory_region" in parameters:
        raise InputError(f"output {OUTPUT!r} is wanted in shared memory, which this server does not write")
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise InputError(f"classification must be a number of classes, got {_brief(classes)}")
    return Wanted(classes, _flag(parameters, "binary_data", default.binary))


def read_timeout(parameters: dict[str, Any]) -> float | None:
    """The seconds that a request gives itself; Triton's "timeout" is in microseconds, and 0 is none.

    Raises:
        InputError: it is not a whole number from 0 on.
    """
    timeout = parameters.get("timeout", 0)
    if type(timeout) is not int or not 0 <= timeout < 1 << 63:
        raise InputError(f"timeout must be a whole number of microseconds, got {_brief(timeout)}")
    return timeout * 1e-6 or None


def write_response(
    name: str, version: str, request: InferRequest, y: Rows, labels: Sequence[str] | None = None
) -> tuple[bytes, int | None]:
    """The body of the answer, and how many of its bytes are JSON where bytes of the tensor follow.

    Args:
        y: ``(rows, out)``.
        labels: of the outputs, for the classes.

    Raises:
        InputError: more classes are wanted than `top_classes` gives.
    """
    raw: bytes | None = None
    if request.wanted.classes:
        strings = top_classes(y, request.wanted.classes, labels)
        count = len(strings) // len(y) if len(y) else min(request.wanted.classes, y.shape[1])
        output: dict[str, Any] = {"name": OUTPUT, "datatype": "BYTES", "shape": (len(y), count)}
        if request.wanted.binary:
            raw = pack_strings(strings)
        else:
            output["data"] = strings
    else:
        output = {"name": OUTPUT, "datatype": "FP32", "shape": y.shape}
        if request.wanted.binary:
            raw = y.astype(_WIRE, copy=False).tobytes()
        else:
            output["data"] = y.ravel()  # written as the shortest decimals that give the same float32
    content: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": (output,)}
    if request.id is not None:
        content["id"] = request.id
    if raw is None:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), None
    output["parameters"] = {"binary_data_size": len(raw)}
    header = orjson.dumps(content)
    return header + raw, len(header)


def top_classes(y: Rows, count: int, labels: Sequence[str] | None = None) -> list[str]:
    """For each row the `count` largest outputs, largest first, as "value:index" or "value:index:label".

    Of equal ones the first is first, and NaN comes last. At most as many as there are outputs.

    Raises:
        InputError: they would be more than 65536 in all.
    """
    count = min(count, y.shape[1])
    if len(y) * count > _MOST_CLASSES:
        raise InputError(
            f"classification gives at most {_MOST_CLASSES} classes at once, not {count} for each of {len(y)} rows: "
            "send fewer rows, or leave it out and get all outputs as numbers"
        )
    order = np.argsort(-y, axis=1, kind="stable")[:, :count]
    names = [f"{index}:{label}" for index, label in enumerate(labels)] if labels else range(y.shape[1])
    values = np.take_along_axis(y, order, axis=1)
    return [f"{value!s}:{names[index]}" for value, index in zip(values.ravel(), order.ravel().tolist(), strict=True)]


def pack_strings(strings: Sequence[str]) -> bytes:
    """A BYTES tensor in the binary form: each string as UTF-8 behind its length in four bytes."""
    encoded = [string.encode() for string in strings]
    return b"".join(struct.pack("<I", len(each)) + each for each in encoded)


def _parameters(content: dict[str, Any]) -> dict[str, Any]:
    parameters = content.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise InputError(f"parameters must be an object, got {_brief(parameters)}")
    return parameters


def _flag(parameters: dict[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise InputError(f"{name} must be true or false, got {_brief(value)}")
    return value
