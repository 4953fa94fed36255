"""Data-parallel training in several processes, under ``torchrun``."""

import itertools
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from pyro_vae.guides import VQ
from pyro_vae.likelihoods.real import Optimal

FILLS = {Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.cauchy_, Tensor.geometric_, Tensor.log_normal_}
LIKE = {torch.rand_like, torch.randn_like, torch.bernoulli}
FACTORIES = {torch.rand, torch.randn}
OF_Z, OF_X = -2, 0  # the data's dimension: z has shape (*, data, latent), x has shape (data, *event)
LOST = re.compile("onnection|peer|remote process|roken pipe")  # torch's errors where another process has ended
CALLS = itertools.count()
CHECK_EVERY = 50  # steps between checks for a stop of several processes on GPUs, since a check waits for the GPU


class Stopped(KeyboardInterrupt):
    """A signal stopped training between two steps."""


def is_first() -> bool:
    """Whether this process is the only or first process of ``torchrun``; only the first process prints and writes."""
    return not _launched() or int(os.environ.get("RANK", 0)) == 0


def _launched() -> bool:
    """Whether ``torchrun`` started several processes."""
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextmanager
def process_group(device: str) -> "Iterator[Processes]":
    """Connect the processes of ``torchrun`` while the context lasts, by gloo on CPUs and NCCL on GPUs."""
    joined = dist.is_available() and dist.is_initialized()
    if joined or not _launched():
        yield Processes(dist.get_rank(), dist.get_world_size()) if joined else Processes()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    # Each call uses another prefix: the store still holds the addresses of earlier calls.
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"pyro_vae {next(CALLS)}", store)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", store=store, rank=rank, world_size=world)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # a process that leaves early would close the connections of the others
    finally:
        dist.destroy_process_group()


class Processes:
    """The processes of one run: this process's rank and rows, and collective operations.

    A run has the same results, up to rounding, for any number of processes. Each process trains on its rows of every
    batch, the processes sum their gradients, and :meth:`noise` draws the same noise for the same datum.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    def check_sizes(self, sizes: Sequence[int]) -> None:
        """Raise a ValueError if a batch size in ``sizes`` leaves a process without a row."""
        if min(sizes) < self.world:
            raise ValueError(
                f"Expected a row for each of {self.world} processes in every batch; got a batch of {min(sizes)}. "
                "Choose another batch_size, or fewer processes."
            )

    def check_batch_statistics(self, program: nn.Module, objective: Any) -> None:
        """Raise a ValueError if several processes share a minibatch and a part uses statistics of the minibatch."""
        layers = [layer for layer in program.modules() if isinstance(layer, _BatchNorm | Optimal | VQ)]
        names = ["scale = 'optimal'" if isinstance(layer, Optimal) else type(layer).__name__ for layer in layers]
        bits, penalty = getattr(objective, "free_bits", 0), getattr(objective, "penalty", None)
        names += [f"free_bits = {bits}"] if bits else [type(penalty).__name__] if penalty else []
        if self.world > 1 and (names := [name for name in names if name != "SyncBatchNorm"]):
            raise ValueError(
                f"Expected one process for {names[0]}, which uses statistics of the whole minibatch; got {self.world}. "
                "Train without torchrun."
            )

    def own_rows(self, rows: Tensor) -> Tensor:
        """Return this process's rows of a batch."""
        return rows if self.world == 1 else rows[self._slice(len(rows))]

    def noise(self, total: int, dim: int) -> "WholeBatch | None":
        """Return a context that draws noise for ``total`` rows, along ``dim``, and returns this process's rows."""
        return None if self.world == 1 else WholeBatch(self._slice(total), total, dim)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over processes, and return the tensor."""
        return self._communicate(dist.all_reduce, tensor)

    def total(self, numbers: Tensor) -> float:
        """Return the sum of numbers over processes, in float64."""
        total = torch.tensor(math.fsum(numbers.tolist()), dtype=torch.float64, device=numbers.device)
        return self.all_reduce(total).item()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is true in any process."""
        return flag if self.world == 1 else self.all_reduce(torch.tensor(float(flag), device=device)).item() > 0

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by the first process's tensor, and return the tensor."""
        return self._communicate(dist.broadcast, tensor, 0)

    @contextmanager
    def stop_on_signal(self, device: torch.device) -> Iterator[Callable[[], None]]:
        """Catch SIGINT and SIGTERM; yield a check that raises Stopped in all processes; a second signal interrupts."""
        received: list[int] = []
        checks, waits = itertools.count(1), device.type == "cuda" and self.world > 1

        def note(number: int, frame: FrameType | None) -> None:
            if received:
                raise KeyboardInterrupt
            received.append(number)

        def check() -> None:
            if not (next(checks) % CHECK_EVERY and waits) and self.any(bool(received), device):
                raise Stopped

        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, note) for number in signals}
        try:
            yield check
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def sum_gradients(self, parameters: Sequence[Tensor], weight: float) -> None:
        """Sum the gradients of parameters, times a weight, over processes, in one message."""
        if self.world == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.all_reduce(weight * torch.cat([gradient.flatten() for gradient in gradients]))
        sums = flat.split([gradient.numel() for gradient in gradients])
        for parameter, gradient in zip(parameters, sums, strict=True):
            parameter.grad = gradient.view_as(parameter)

    def _communicate(self, collective: Callable[..., Any], tensor: Tensor, *arguments: int) -> Tensor:
        """Run a collective operation on a tensor; raise a ConnectionError if another process has ended."""
        try:
            if self.world > 1:
                collective(tensor, *arguments)
        except RuntimeError as error:
            if not LOST.search(str(error)):
                raise
            raise ConnectionError(
                f"Expected {self.world} running processes; another one has ended. Start all of them again, with "
                "--resume and the run's directory to continue from the last checkpoint."
            ) from None
        return tensor

    def _slice(self, total: int) -> slice:
        """Return this process's rows of ``total`` rows."""
        return slice(total * self.rank // self.world, total * (self.rank + 1) // self.world)


class WholeBatch(TorchFunctionMode):
    """Draws the noise of a whole batch along a dimension, as one process would, and returns this process's rows.

    The class covers normal, uniform, exponential, Cauchy, geometric, log-normal and Bernoulli draws. Other draws, such
    as Gamma draws and dropout masks, are equal in all processes, because the processes share one seed. Equal draws
    increase the gradient's variance, but do not bias the gradient.
    """

    def __init__(self, rows: slice, total: int, dim: int) -> None:
        super().__init__()
        self.key = self.start, self.rows, self.total, self.dim = rows.start, rows.stop - rows.start, total, dim

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        shape: Any = args[0] if func in FACTORIES and args else args[0].shape if func in FILLS or func in LIKE else None
        if not (isinstance(shape, Sequence) and -len(shape) <= self.dim < len(shape) and shape[self.dim] == self.rows):
            return func(*args, **kwargs)
        sizes = list(shape)
        sizes[self.dim] = self.total
        if func in FACTORIES:
            return self._own_rows(func(sizes, *args[1:], **kwargs))
        batch = args[0].new_zeros(sizes)
        if func in FILLS:
            return args[0].copy_(self._own_rows(func(batch, *args[1:], **kwargs)))
        self._own_rows(batch).copy_(args[0])
        return self._own_rows(func(batch, *args[1:], **kwargs))

    def _own_rows(self, batch: Tensor) -> Tensor:
        return batch.narrow(self.dim, self.start, self.rows)
