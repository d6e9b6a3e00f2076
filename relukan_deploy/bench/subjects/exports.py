"""A peer's own ONNX export, as PyTorch writes it, in the engines that run ours."""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._compiling import first_line
from ..._tensorrt import Flavour
from ...bundle import Artifact
from ...errors import MissingDependencyError, RelukanError
from ...exporters.to_tensorrt import EngineOptions, build_engine
from ...lowering import ENGINE_FORM
from ...runtime._engine import EngineBackend
from ...runtime._session import make_session
from ...runtime.ort_cuda import open_session
from ..results import Contender, Data
from ..timing import Turn, rotated
from . import Subject
from .bound import bound_calls
from .bundles import engine_subjects
from .networks import TOLERANCE, Network

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_plan", "export", "graph_of", "in_onnxruntime_cpu", "in_onnxruntime_cuda", "in_tensorrt"]

_OPSET = 18  # the lowest that PyTorch's exporter writes without converting, so that most engines read it
_PROFILE = (1, 64, 65536)
_SCRATCH_BYTES = 8 << 30  # that an engine may take for its temporaries, about


def export(module: nn.Module, in_features: int, *, batch_major: bool = False) -> bytes:
    """The module as `torch.onnx.export(dynamo=True)` writes it, with a free batch size.

    Args:
        module: x ``(batch, in)`` to y ``(batch, out)``; so are the graph's "x" and "y".
        in_features: number of inputs.
        batch_major: they are ``(batch, in, 1)`` and ``(batch, out, 1)``, as in our own graphs of that layout.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
        RelukanError: PyTorch cannot export it.
    """
    import torch

    class BatchMajor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.module(x.squeeze(-1))
            return y.unsqueeze(-1)

    x = torch.zeros(2, in_features)
    given = (BatchMajor(), x.unsqueeze(-1)) if batch_major else (module, x)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        try:
            program = torch.onnx.export(
                given[0],
                (given[1],),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["x"],
                output_names=["y"],
                opset_version=_OPSET,
                verbose=False,
            )
            assert program is not None
            path = Path(folder) / "peer.onnx"
            program.save(path, external_data=False)
        except ImportError as error:
            raise MissingDependencyError("Exporting a peer", error.name or "onnxscript", "bench") from error
        except Exception as error:  # of torch.export, of torch.onnx, of onnxscript
            raise RelukanError(f"PyTorch cannot export it: {first_line(error)}") from error
        return path.read_bytes()


def in_onnxruntime_cpu(network: Network, threads: int) -> list[Subject]:
    """From rows to answers, and the graph alone.

    Raises:
        RelukanError: it cannot be exported, loaded or run, or its answers are wrong.
    """
    model = graph_of(network, batch_major=False)
    make = functools.partial(make_session, model, ["CPUExecutionProvider"], threads)
    return _sessions(network, "onnxruntime-cpu", make, ["host", "bound"])


def in_onnxruntime_cuda(network: Network) -> list[Subject]:
    """From rows in host memory to answers there. Raises as `in_onnxruntime_cpu` does."""
    model = graph_of(network, batch_major=False)
    return _sessions(network, "onnxruntime-cuda", functools.partial(open_session, model), ["host"])


def in_tensorrt(network: Network, flavour: Flavour) -> list[Subject]:
    """With rows on the host and on the GPU, each with CUDA graphs and without.

    Raises:
        RelukanError: it cannot be exported, built or run, or its answers are wrong.
    """
    plan, artifact = build_plan(network, flavour)
    make = functools.partial(EngineBackend, flavour, plan, artifact, network.widths[0], network.widths[-1])
    running = make()
    try:
        found = network.check(running.run, f"the export of {network.name} in {flavour}")
        return engine_subjects(
            Contender(network.name, network.widths, flavour),
            lambda graphs: running if graphs else make(graphs=False),
            network.inputs.domain,
            parameters=network.parameters,
            difference=found,
        )
    except BaseException:
        running.close()
        raise


def build_plan(network: Network, flavour: Flavour) -> tuple[bytes, Artifact]:
    """An engine of the network's export, for as many rows at a time as its temporaries leave room for.

    Raises:
        MissingDependencyError, MissingDeviceError: the flavour, or the GPU it needs, is not there.
        RelukanError: it cannot be exported or built.
    """
    least, usual, most = _PROFILE
    while most > usual and network.bytes_for(most) > _SCRATCH_BYTES:
        most //= 4
    options = EngineOptions(batch=(least, usual, most))
    plan = build_engine(
        graph_of(network, batch_major=True),
        in_features=network.widths[0],
        layout="batch-major",
        precision="fp32",
        options=options,
        flavour=flavour,
    ).plan
    name = f"{network.name}.engine"
    return plan, Artifact(name, flavour, "fp32", "batch-major", ENGINE_FORM, TOLERANCE, batch=options.batch)


def graph_of(network: Network, *, batch_major: bool) -> bytes:
    """The network's export, made once for all engines. Raises as `export` does."""
    if batch_major not in network.graphs:
        network.graphs[batch_major] = export(network.module, network.widths[0], batch_major=batch_major)
    return network.graphs[batch_major]


def _sessions(network: Network, engine: str, make: Callable[[], Any], data: Sequence[Data]) -> list[Subject]:
    session = make()
    found = network.check(lambda x: session.run(["y"], {"x": x})[0], f"the export of {network.name} in {engine}")
    contenders = [Contender(network.name, network.widths, engine, data=each) for each in data]
    return [_Session(contender, network, found, make) for contender in contenders]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and nothing said below an error."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Session:
    """A `Subject`: a graph in ONNX Runtime. Its session lasts while a batch is prepared, as its memory does."""

    def __init__(self, contender: Contender, network: Network, difference: float, make: Callable[[], Any]) -> None:
        self.contender = contender
        self.parameters = network.parameters
        self.difference: float | None = difference
        self._network: Network | None = network
        self._make = make

    def bytes_for(self, batch: int) -> int:
        assert self._network is not None
        return self._network.bytes_for(batch)

    def prepare(self, batch: int) -> Turn:
        network, session = self._network, self._make()
        assert network is not None
        inputs = network.inputs.of(batch)
        if self.contender.data == "bound":
            calls: list[Callable[[], object]] = [*bound_calls(session, inputs, (batch, network.widths[-1]))]
        else:
            calls = [functools.partial(session.run, ["y"], {"x": x}) for x in inputs]
        try:
            calls[0]()
        except Exception as error:  # onnxruntime has a dozen exceptions without a common base
            raise RelukanError(f"ONNX Runtime could not run {batch} rows: {first_line(error)}") from error
        return rotated(calls)

    def split(self) -> None:
        return None

    def release(self) -> None:
        if self._network is not None:
            self._network.inputs.forget()

    def close(self) -> None:
        self._network = None
