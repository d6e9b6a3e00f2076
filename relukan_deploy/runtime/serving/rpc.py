"""The gRPC server: the Open Inference Protocol on the stubs that come with tritonclient.

What a request says is read by the same functions as over HTTP, and the answers are the same. Tensors
travel as raw bytes; a request may also hold typed contents, as the protocol allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import numpy as np

from ...errors import (
    DeadlineExceeded,
    InputError,
    MissingDependencyError,
    NotReady,
    QueueFull,
    RelukanError,
    ServiceClosed,
    UnknownModel,
)
from ..runner import Rows
from . import describe
from .keys import Keys
from .metrics import Metrics
from .oip import (
    OUTPUT,
    check_input,
    pack_strings,
    read_outputs,
    read_timeout,
    rows_from_bytes,
    top_classes,
)
from .store import Answer, Store

try:
    import grpc
    from google.protobuf.json_format import ParseDict
    from tritonclient.grpc import service_pb2 as pb
    from tritonclient.grpc import service_pb2_grpc as stubs
except (ImportError, RuntimeError) as error:  # RuntimeError: tritonclient is here, and its gRPC extra is not
    raise MissingDependencyError("Serving gRPC", "tritonclient[grpc]", "grpc") from error

__all__ = ["start_rpc"]

logger = logging.getLogger("relukan_deploy.serving")

_IN_FLIGHT = 256  # requests of one stream; the next is read when the first of them is answered
_SORRY = "something went wrong in the server; its log says what"

# The first that an error is an instance of.
_CODES: dict[type[RelukanError], grpc.StatusCode] = {
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    InputError: grpc.StatusCode.INVALID_ARGUMENT,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    QueueFull: grpc.StatusCode.UNAVAILABLE,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    ServiceClosed: grpc.StatusCode.UNAVAILABLE,
    RelukanError: grpc.StatusCode.INTERNAL,
}


async def start_rpc(
    store: Store,
    metrics: Metrics,
    *,
    host: str,
    port: int,
    api_keys: Iterable[str] = (),
    max_request_bytes: int = 64 << 20,
    reuse_port: bool = False,
) -> tuple[grpc.aio.Server, int]:
    """Serves the models of a store on the running event loop.

    Args:
        metrics: where requests are counted.
        host, port: where to listen; port 0 takes a free one.
        api_keys: one of which every request has to bring, in the metadata ``authorization: Bearer KEY``, if there
            are any. ServerLive and ServerReady need none.
        max_request_bytes: of a message, before and after it is decompressed.
        reuse_port: lets other processes listen on the same port, so that they share the connections.

    Returns:
        The server, whose ``stop(seconds)`` lets what it has accepted finish, and its port.

    Raises:
        InputError: the port cannot be had.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(reuse_port)),
        ]
    )
    stubs.add_GRPCInferenceServiceServicer_to_server(_Service(store, metrics, Keys(api_keys)), server)
    try:
        port = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise InputError(f"gRPC cannot listen on {host} port {port}: choose another with --grpc-port") from error
    await server.start()
    return server, port


class _Service(stubs.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped
    """One method for each of the protocol; those left out are UNIMPLEMENTED."""

    def __init__(self, store: Store, metrics: Metrics, keys: Keys) -> None:
        self._store = store
        self._metrics = metrics
        self._keys = keys

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ServerReadyResponse(ready=self._store.ready())

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with self._answering(context):
            return pb.ModelReadyResponse(ready=self._store.ready(request.name, request.version))

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with self._answering(context):
            return ParseDict(describe.server_metadata(), pb.ServerMetadataResponse())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with self._answering(context):
            model = self._store.get(request.name, request.version)
            return ParseDict(describe.model_metadata(model), pb.ModelMetadataResponse())

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with self._answering(context):
            model = self._store.get(request.name, request.version)
            return ParseDict({"config": describe.model_config(model, self._store.options)}, pb.ModelConfigResponse())

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Of one model, or, without a name, of all."""
        async with self._answering(context):
            models = [self._store.get(request.name, request.version)] if request.name else self._store.models()
            totals = await asyncio.to_thread(self._metrics.totals)
            of_models = [describe.model_statistics(each, totals.get((each.name, each.version), {})) for each in models]
            return ParseDict({"model_stats": of_models}, pb.ModelStatisticsResponse())

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with self._answering(context):
            index = describe.repository_index(self._store, ready=request.ready)
            return ParseDict({"models": index}, pb.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Looks for a new version of a model now, rather than at the next poll."""
        async with self._answering(context):
            if request.parameters:
                raise InputError(describe.LOAD_TAKES_NOTHING)
            name = request.model_name
            try:
                await asyncio.to_thread(self._store.reload, name)
            except (UnknownModel, NotReady, ServiceClosed):
                raise
            except RelukanError as error:
                message = _short(describe.load_failure(name, error))
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message)
            return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with self._answering(context):
            name = self._store.get(request.model_name).name
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, describe.unload_refusal(name))

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        async with self._answering(context):
            return await self._infer(request, context.time_remaining())

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Answers in the order of the requests, of which several are in flight and may be joined in a batch."""
        async with self._answering(context):
            in_flight: asyncio.Queue[asyncio.Future[Any] | None] = asyncio.Queue(_IN_FLIGHT)
            async with _cancelled_at_the_end() as tasks:
                tasks.add(asyncio.create_task(self._read_stream(requests, context, in_flight, tasks)))
                while (answer := await in_flight.get()) is not None:
                    yield await answer

    async def _read_stream(
        self,
        requests: AsyncIterator[Any],
        context: Any,
        in_flight: asyncio.Queue[asyncio.Future[Any] | None],
        tasks: set[asyncio.Task[Any]],
    ) -> None:
        end = None
        try:
            async for request in requests:
                answer = asyncio.create_task(self._infer_of_stream(request, context.time_remaining()))
                tasks.add(answer)
                answer.add_done_callback(tasks.discard)
                await in_flight.put(answer)
        except Exception as error:
            end = asyncio.get_running_loop().create_future()
            end.set_exception(error)
        await in_flight.put(end)

    async def _infer_of_stream(self, request: Any, remaining: float | None) -> Any:
        """An answer, or the error in its place: the stream goes on."""
        try:
            response = await self._infer(request, remaining)
        except Exception as error:
            _, message = _told(error)
            identity = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            return pb.ModelStreamInferResponse(error_message=message, infer_response=identity)
        response.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=response)

    async def _infer(self, request: Any, remaining: float | None) -> Any:
        began = time.perf_counter()
        model = self._store.get(request.model_name, request.model_version)
        try:
            x = _read_rows(request, model.manifest.in_features)
            classes = read_outputs([_plain(output) for output in request.outputs]).classes
            limits = [each for each in (remaining, read_timeout(_parameters(request))) if each is not None]
            timeout = min(limits, default=None)
            answer = await self._store.infer(model, x, version=request.model_version, timeout=timeout)
            response = _write_response(request.id, answer, classes)
        except BaseException as error:
            self._metrics.failed(model.name, model.version, error)
            raise
        self._metrics.answered(model.name, answer.model.version, time.perf_counter() - began)
        return response

    @contextlib.asynccontextmanager
    async def _answering(self, context: Any) -> AsyncIterator[None]:
        """Lets those pass who bring a key, and says with a status code what went wrong."""
        if self._keys and not self._keys.fit(_authorization(context)):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, Keys.REFUSAL)
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await context.abort(*_told(error))


@contextlib.asynccontextmanager
async def _cancelled_at_the_end() -> AsyncIterator[set[asyncio.Task[Any]]]:
    """A set of tasks, of which none outlives the block."""
    tasks: set[asyncio.Task[Any]] = set()
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()


def _told(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What a client is told of an error."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            if code is grpc.StatusCode.INTERNAL:
                logger.error("%s", error, exc_info=error)
            return code, _short(str(error))
    logger.error("%s", _SORRY, exc_info=error)
    return grpc.StatusCode.INTERNAL, _SORRY


def _short(message: str) -> str:
    """What fits where gRPC puts it: a client refuses metadata of some kilobytes, and with it the status."""
    return message if len(message) <= 500 else f"{message[:300]} ... {message[-180:]}"


def _authorization(context: Any) -> bytes | None:
    for name, value in context.invocation_metadata() or ():
        if name == "authorization":
            return value if isinstance(value, bytes) else value.encode()
    return None


def _read_rows(request: Any, in_features: int) -> Rows:
    """The one input of a request, from raw bytes or from typed contents.

    Raises:
        InputError: it is not the model's.
    """
    if len(request.inputs) != 1:
        raise InputError(f"inputs must be one tensor, 'x', got {len(request.inputs)}")
    tensor = request.inputs[0]
    rows = check_input(tensor.name, tensor.datatype, list(tensor.shape), in_features)
    if "shared_memory_region" in tensor.parameters:
        raise InputError("input 'x' is in shared memory, which this server does not read: send its data")
    raw = request.raw_input_contents
    if not raw:
        numbers = tensor.contents.fp32_contents
        # As a message of their own they are serialized as raw floats behind its head: no list of millions.
        message = pb.InferTensorContents(fp32_contents=numbers).SerializeToString()
        return rows_from_bytes(message[len(message) - 4 * len(numbers) :], rows, in_features)
    if len(raw) != 1 or tensor.HasField("contents"):
        raise InputError(
            "input 'x' must be in one entry of raw_input_contents, or in its fp32_contents, and not in both"
        )
    return rows_from_bytes(raw[0], rows, in_features)


def _plain(output: Any) -> Mapping[str, Any]:
    return {"name": output.name, "parameters": _parameters(output)}


def _parameters(message: Any) -> dict[str, Any]:
    """The parameters of a request or a tensor, as the values that they hold."""
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in message.parameters.items())
    return {name: getattr(value, kind) if kind else None for name, value, kind in chosen}


def _write_response(identity: str, answer: Answer, classes: int) -> Any:
    y, model = answer.y, answer.model
    response = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=identity)
    if classes:
        response.outputs.add(name=OUTPUT, datatype="BYTES", shape=(len(y), min(classes, y.shape[1])))
        response.raw_output_contents.append(pack_strings(top_classes(y, classes, model.manifest.labels)))
    else:
        response.outputs.add(name=OUTPUT, datatype="FP32", shape=y.shape)
        response.raw_output_contents.append(y.astype(np.dtype("<f4"), copy=False).tobytes())
    return response
