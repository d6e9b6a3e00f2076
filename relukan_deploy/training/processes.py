"""Training in several processes, as torchrun starts them: one for each GPU, or on CPUs.

Each process holds the network and all rows, and takes its share of every batch. Gradients are averaged by
DistributedDataParallel, so that the weights remain the same everywhere, and are those that one process would have
got from the same batches, up to rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn

from ..errors import InputError

__all__ = ["ALONE", "Processes", "is_first", "joined"]

Network = TypeVar("Network", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Processes:
    """How many processes train together, and which of them this is, from 0."""

    size: int = 1
    rank: int = 0
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    def prepared(self, network: Network) -> Network:
        """The network with normalisations that see the rows of all processes.

        Raises:
            InputError: it has normalisations, and the processes are on CPUs.
        """
        if self.size == 1 or not any(isinstance(module, nn.BatchNorm1d) for module in network.modules()):
            return network
        if self.device.type != "cuda":
            raise InputError("batch_norm over several processes needs GPUs: leave it out, or train in one process")
        return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(network))  # type: ignore[no-untyped-call]

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, [self.device] if self.device.type == "cuda" else None)

    def joining(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """In which a gradient is computed; only with the last one of a step are they averaged."""
        if last or not isinstance(module, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return module.no_sync()

    def share_of(self, batch_size: int, least: int) -> int:
        """The rows of a batch that a process takes at most, of which each has to have `least` or more.

        Raises:
            InputError: there are not enough.
        """
        if batch_size < least * self.size:
            raise InputError(
                f"a step needs {least * self.size} rows, {least} for each process, and has {batch_size}: "
                "choose a larger batch_size, fewer processes, or a smaller validation"
            )
        return -(-batch_size // self.size)

    def own(self, rows: Tensor) -> Tensor:
        """This process's share of the rows."""
        return rows[self.rank :: self.size] if self.size > 1 else rows

    def total(self, value: Tensor) -> Tensor:
        """The sum of the processes' values."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def agreed(self, values: Sequence[float]) -> list[float]:
        """The first process's values, so that all decide alike."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, 0)
        return shared.tolist()


ALONE = Processes()


def is_first() -> bool:
    """Whether this is the process that writes and reports: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0" or not distributed.is_torchelastic_launched()


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone; a GPU for each, if they train on GPUs."""
    if not distributed.is_torchelastic_launched():
        yield Processes(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_world_size(), distributed.get_rank(), device)
    finally:
        distributed.destroy_process_group()
