"""Several processes that train one VAE together, under ``torchrun``."""

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

from pyro_vae.likelihoods.real import Optimal

FILLS = {Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.cauchy_, Tensor.geometric_, Tensor.log_normal_}
LIKE = {torch.rand_like, torch.randn_like, torch.bernoulli}
FACTORIES = {torch.rand, torch.randn}
# z has shape (*, data, latent), and x (data, *event).
OF_Z, OF_X = -2, 0
LOST = re.compile("onnection|peer|remote process|roken pipe")  # in torch's words where another process has ended
CALLS = itertools.count()
LOOK = 50  # steps after which several processes on GPUs ask each other, since to do so they wait


class Stopped(KeyboardInterrupt):
    """Training stops on request, between two steps."""


def is_first() -> bool:
    """Whether this is the process that prints and writes: the first one, or the only one."""
    return not _launched() or int(os.environ.get("RANK", 0)) == 0


def _launched() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextmanager
def together(device: str) -> "Iterator[Processes]":
    """Join the processes that ``torchrun`` started, over gloo on CPUs and NCCL on GPUs, for as long as this lasts."""
    joined = dist.is_available() and dist.is_initialized()
    if joined or not _launched():
        yield Processes(dist.get_rank(), dist.get_world_size()) if joined else Processes()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    # Under a name of its own each time, or a second call would find the addresses of the first in the store, and wait.
    store, rank, world = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"pyro_vae {next(CALLS)}", store)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", store=store, rank=rank, world_size=world)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # one that leaves early would take its end of the others' connections with it
    finally:
        dist.destroy_process_group()


class Processes:
    """The processes of one run: which one this is, from 0, its rows of a batch, and sums over all of them.

    A run gives the same numbers, to rounding, however many processes share it: each has its own rows of every batch,
    the gradients are summed, and :meth:`noise` draws the same noise for the same datum.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    def check(self, sizes: Sequence[int]) -> None:
        """Refuse sizes of batches in which a process has no row."""
        if min(sizes) < self.world:
            raise ValueError(
                f"Expected a row for each of {self.world} processes in every batch; got a batch of {min(sizes)}. "
                "Choose another batch_size, or fewer processes."
            )

    def check_whole(self, program: nn.Module, objective: Any) -> None:
        """Refuse what is computed over a minibatch, and would be computed over each process's part of it."""
        norms = [layer for layer in program.modules() if isinstance(layer, _BatchNorm | Optimal)]
        parts = ["scale = 'optimal'" if isinstance(layer, Optimal) else type(layer).__name__ for layer in norms]
        bits, penalty = getattr(objective, "free_bits", 0), getattr(objective, "penalty", None)
        parts += [f"free_bits = {bits}"] if bits else [type(penalty).__name__] if penalty else []
        if self.world > 1 and (parts := [part for part in parts if part != "SyncBatchNorm"]):
            raise ValueError(
                f"Expected one process for {parts[0]}, which is computed over a whole minibatch; got {self.world}, of "
                "which each has a part of it. Train without torchrun."
            )

    def mine(self, rows: Tensor) -> Tensor:
        """Return this process's part of the rows of a batch."""
        return rows if self.world == 1 else rows[self._part(len(rows))]

    def noise(self, total: int, dim: int) -> "WholeBatch | None":
        """Return a context in which noise is this process's part of a batch of so many rows, along a dimension."""
        return None if self.world == 1 else WholeBatch(self._part(total), total, dim)

    def summed(self, tensor: Tensor) -> Tensor:
        """Return a tensor that has become the sum over processes."""
        return self._with_all(dist.all_reduce, tensor)

    def total(self, numbers: Tensor) -> float:
        """Return the sum of numbers over processes, in float64."""
        total = torch.tensor(math.fsum(numbers.tolist()), dtype=torch.float64, device=numbers.device)
        return self.summed(total).item()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is up in any process."""
        return flag if self.world == 1 else self.summed(torch.tensor(float(flag), device=device)).item() > 0

    def same(self, tensor: Tensor) -> Tensor:
        """Return the first process's tensor."""
        return self._with_all(dist.broadcast, tensor, 0)

    @contextmanager
    def stopping(self, device: torch.device) -> Iterator[Callable[[], None]]:
        """Take note of SIGINT and SIGTERM; yield what raises Stopped in all processes then; a second stops at once."""
        asked: list[int] = []
        checks, waits = itertools.count(1), device.type == "cuda" and self.world > 1

        def note(number: int, frame: FrameType | None) -> None:
            if asked:
                raise KeyboardInterrupt
            asked.append(number)

        def check() -> None:
            if not (next(checks) % LOOK and waits) and self.any(bool(asked), device):
                raise Stopped

        signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, note) for number in signals}
        try:
            yield check
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def sum_gradients(self, parameters: Sequence[Tensor], weight: float) -> None:
        """Sum the gradients of parameters, times a weight, over processes, all in one message."""
        if self.world == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.summed(weight * torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def _with_all(self, collective: Callable[..., Any], tensor: Tensor, *arguments: int) -> Tensor:
        """Return a tensor after a message to all processes and from them; say it where one of them has ended."""
        try:
            if self.world > 1:
                collective(tensor, *arguments)
        except RuntimeError as error:
            if not LOST.search(str(error)):
                raise
            raise ConnectionError(
                f"Expected {self.world} processes that train together; another one has ended. Start all of them again, "
                "with --resume and the run's directory to go on from the last checkpoint."
            ) from None
        return tensor

    def _part(self, total: int) -> slice:
        return slice(total * self.rank // self.world, total * (self.rank + 1) // self.world)


class WholeBatch(TorchFunctionMode):
    """Draws noise for a whole batch along a dimension, and takes this process's rows: as if there were only one.

    It reaches the noise that reparameterised draws start from (normal, uniform, exponential) and Bernoulli draws. All
    else, as a Gamma's draws and the masks of dropout, is alike on all processes, from generators that are seeded alike:
    that biases no gradient, but makes its variance larger.
    """

    def __init__(self, part: slice, total: int, dim: int) -> None:
        super().__init__()
        self.key = self.start, self.rows, self.total, self.dim = part.start, part.stop - part.start, total, dim

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        shape: Any = args[0] if func in FACTORIES and args else args[0].shape if func in FILLS or func in LIKE else None
        if not (isinstance(shape, Sequence) and -len(shape) <= self.dim < len(shape) and shape[self.dim] == self.rows):
            return func(*args, **kwargs)
        sizes = list(shape)
        sizes[self.dim] = self.total
        if func in FACTORIES:
            return self._mine(func(sizes, *args[1:], **kwargs))
        whole = args[0].new_zeros(sizes)
        if func in FILLS:
            return args[0].copy_(self._mine(func(whole, *args[1:], **kwargs)))
        self._mine(whole).copy_(args[0])
        return self._mine(func(whole, *args[1:], **kwargs))

    def _mine(self, whole: Tensor) -> Tensor:
        return whole.narrow(self.dim, self.start, self.rows)
