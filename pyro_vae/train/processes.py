"""Several processes that train one VAE together, under ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

__all__ = ["Processes", "is_first", "together"]

FILLS = {Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.cauchy_, Tensor.geometric_, Tensor.log_normal_}
LIKE = {torch.rand_like, torch.randn_like, torch.bernoulli}
FACTORIES = {torch.rand, torch.randn}


def is_first() -> bool:
    """Whether this is the process that prints and writes: the first one, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


@contextmanager
def together(device: str) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, over gloo on CPUs and NCCL on GPUs, for as long as this lasts."""
    if dist.is_available() and dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size())
        return
    if not dist.is_available() or not dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Processes()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    processes = Processes(dist.get_rank(), dist.get_world_size())
    try:
        yield processes
        dist.barrier()  # one that leaves early would take its end of the others' connections with it
    finally:
        processes.leave()
        dist.destroy_process_group()


class Processes:
    """The processes of one run: which one this is, which rows of a batch are its own, and what all of them sum.

    A run gives the same numbers, to rounding, however many processes share it: each has its own rows of every batch,
    the gradients are summed, and :meth:`noise` draws the same noise for the same datum.

    Arguments:
        rank: Which one this is, from 0.
        world: How many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank = rank
        self.world = world
        self._reducer: _Reducer | None = None

    def check(self, sizes: Sequence[int]) -> None:
        """Check that each process has a row of every batch.

        Raises:
            ValueError: If one has none.
        """
        if min(sizes) < self.world:
            raise ValueError(
                f"Expected a row for each of {self.world} processes in every batch; got a batch of {min(sizes)}. "
                "Choose another batch_size, or fewer processes."
            )

    def mine(self, rows: Tensor) -> Tensor:
        """Return this process's part of the rows of a batch."""
        return rows[self._start(len(rows), self.rank) : self._start(len(rows), self.rank + 1)]

    def noise(self, total: int, dim: int) -> WholeBatch | None:
        """Return a context in which noise is this process's part of a batch of so many rows, along a dimension."""
        if self.world == 1:
            return None
        start, end = (self._start(total, rank) for rank in (self.rank, self.rank + 1))
        return WholeBatch(start, end - start, total, dim)

    def summed(self, tensor: Tensor) -> Tensor:
        """Return the sum over processes."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def same(self, tensor: Tensor) -> Tensor:
        """Return the first process's tensor."""
        if self.world > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def reducer(self) -> Callable[[Sequence[Tensor]], None] | None:
        """Return what sums the gradients of parameters over processes, by PyTorch's ``DistributedDataParallel``."""
        self._reducer = None if self.world == 1 else _Reducer()
        return self._reducer

    def leave(self) -> None:
        """Let go of what holds on to the others."""
        if self._reducer is not None:
            self._reducer.parallel = None

    def _start(self, total: int, rank: int) -> int:
        return total * rank // self.world


class WholeBatch(TorchFunctionMode):
    """Draws noise for the whole batch, and takes the rows of one process: as if there were only one.

    It reaches the noise that reparameterised draws start from (normal, uniform, exponential), Bernoulli draws, and
    nothing else: a Gamma's rejections and the masks of dropout are each process's own.

    Arguments:
        start: The first row.
        rows: How many.
        total: Rows of the whole batch.
        dim: Which dimension of the noise the rows are.
    """

    def __init__(self, start: int, rows: int, total: int, dim: int) -> None:
        super().__init__()
        self.key = start, rows, total, dim

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do as the function does, for the whole batch."""
        kwargs = kwargs or {}
        if func in FACTORIES and isinstance(args[0], Sequence) and self._batched(args[0]):
            return self._mine(func(self._whole(args[0]), *args[1:], **kwargs))
        if func in FILLS and self._batched(args[0].shape):
            whole = args[0].new_empty(self._whole(args[0].shape))
            return args[0].copy_(self._mine(func(whole, *args[1:], **kwargs)))
        if func in LIKE and self._batched(args[0].shape):
            whole = args[0].new_zeros(self._whole(args[0].shape))
            self._mine(whole).copy_(args[0])
            return self._mine(func(whole, *args[1:], **kwargs))
        return func(*args, **kwargs)

    def _batched(self, shape: Sequence[int]) -> bool:
        _, rows, _, dim = self.key
        return -len(shape) <= dim < len(shape) and shape[dim] == rows

    def _whole(self, shape: Sequence[int]) -> list[int]:
        _, _, total, dim = self.key
        sizes = list(shape)
        sizes[dim] = total
        return sizes

    def _mine(self, whole: Tensor) -> Tensor:
        start, rows, _, dim = self.key
        return whole.narrow(dim, start, rows)


class _Reducer:
    """Hands gradients that are there already to ``DistributedDataParallel``, whose backward pass sums them."""

    def __init__(self) -> None:
        self.parallel: DistributedDataParallel | None = None

    def __call__(self, parameters: Sequence[Tensor]) -> None:
        if self.parallel is None:
            self.parallel = DistributedDataParallel(_Given(parameters), gradient_as_bucket_view=True)
            self.parallel.register_comm_hook(None, lambda state, bucket: _sum(bucket))
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        self.parallel(_Gradients(gradients)).backward()


class _Gradients:
    """A list that ``DistributedDataParallel`` does not look into."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors


class _Given(nn.Module):
    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.given = nn.ParameterList(parameters)

    def forward(self, gradients: _Gradients) -> Tensor:
        return _Give.apply(gradients, *self.given)


class _Give(torch.autograd.Function):
    """Nothing, whose gradient is what it was given."""

    @staticmethod
    def forward(ctx: Any, gradients: _Gradients, *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients.tensors
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return None, *ctx.gradients


def _sum(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum over processes: losses are sums over the data, and not means."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])
