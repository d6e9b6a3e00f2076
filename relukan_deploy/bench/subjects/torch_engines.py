"""Peers in every engine, and our own network in PyTorch's: eager, compiled, as CUDA graphs, and exported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from ..._tensorrt import Flavour, import_tensorrt
from ...errors import InputError, MissingDependencyError, MissingDeviceError, RelukanError
from ...gpu import open_device
from ...runtime.ort_cuda import require_cuda
from ..peers import PEERS, build
from ..results import OURS, Skipped
from . import Shape, Subject
from .exports import in_onnxruntime_cpu, in_onnxruntime_cuda, in_tensorrt
from .networks import Inputs, Network
from .torch_calls import find_device, set_up
from .torch_subjects import TORCH_ENGINES, in_torch

__all__ = ["ENGINES", "open_network", "peer_subjects"]

_FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

ENGINES = (*TORCH_ENGINES, "onnxruntime-cpu", "onnxruntime-cuda", *_FLAVOURS)
"""What runs a peer."""


def peer_subjects(
    shape: Shape, names: Sequence[str], *, threads: int, engines: Sequence[str], ours: bool = True
) -> tuple[list[Subject], list[Skipped]]:
    """Every peer in every engine, and our own network in those of PyTorch.

    Args:
        shape: of all networks.
        names: of `PEERS`.
        threads: of the CPU, for each.
        engines: of `ENGINES`.
        ours: whether our own network is a ReLU-KAN. Imported splines are no module of ours.

    Raises:
        InputError: a peer or an engine is unknown.
        MissingDependencyError: torch is not installed.
    """
    _check_known("peer", names, PEERS)
    _check_known("engine", engines, ENGINES)
    try:
        set_up(threads)
    except ImportError as error:
        raise MissingDependencyError("Timing other networks", "torch", "bench") from error
    subjects: list[Subject] = []
    skipped: list[Skipped] = []
    usable: list[str] = []
    for engine in engines:
        try:
            _require(engine)
            usable.append(engine)
        except RelukanError as error:
            skipped.append(Skipped(engine, str(error)))
    for network in _networks(shape, names if usable else (), skipped, ours=ours):
        for engine in usable:
            if network.reference and engine not in TORCH_ENGINES:
                continue  # ours has a better export than PyTorch's
            try:
                subjects += open_network(network, engine, threads=threads)
            except RelukanError as error:
                skipped.append(Skipped(f"{network.name}: {engine}", str(error)))
    return subjects, skipped


def open_network(network: Network, engine: str, *, threads: int) -> list[Subject]:
    """The ways to run a network in an engine of `ENGINES`.

    Raises:
        RelukanError: it cannot be run there, or answers wrongly.
    """
    if engine == "onnxruntime-cpu":
        return in_onnxruntime_cpu(network, threads)
    if engine == "onnxruntime-cuda":
        return in_onnxruntime_cuda(network)
    if engine in _FLAVOURS:
        return in_tensorrt(network, engine)
    assert engine in TORCH_ENGINES
    return in_torch(network, engine)


def _check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"no {kind} is called {name!r}: choose from {', '.join(known)}")


def _require(engine: str) -> None:
    """Raises MissingDependencyError or MissingDeviceError: the engine runs nothing here."""
    if engine == "torch CUDA graph" and find_device() == "cpu":
        raise MissingDeviceError("CUDA graphs need an NVIDIA GPU, and PyTorch finds none here")
    if engine == "onnxruntime-cuda":
        require_cuda()
    if engine in _FLAVOURS:
        import_tensorrt(engine, "Timing peers in it")
        open_device()


def _networks(shape: Shape, names: Sequence[str], skipped: list[Skipped], *, ours: bool) -> list[Network]:
    inputs = Inputs(shape.domain)
    networks = [_our_network(shape, inputs)] if ours else []
    for name in names:
        try:
            networks += [Network(each, module, shape, inputs) for each, module in build(name, shape).items()]
        except RelukanError as error:
            skipped.append(Skipped(name, str(error)))
    return networks


def _our_network(shape: Shape, inputs: Inputs) -> Network:
    import torch

    from ..peers.ours import trained_like

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = trained_like(shape)
    return Network(OURS, ours, shape, inputs, reference=ours.spec().evaluate)
