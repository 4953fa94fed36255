"""Save and restore global state around a call: random generators, Pyro's param store, and train or eval mode."""

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import pyro
import torch
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.seed_messenger import SeedMessenger
from torch import Tensor, nn

LOCK = threading.RLock()
HARMLESS = (BlockMessenger, SeedMessenger)  # handlers that change no site of the program inside


def torch_rng_state(device: torch.device) -> list[Tensor]:
    """Return the state of torch's CPU generator and, if the device is a GPU, of the GPU's generator."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_torch_rng_state(state: list[Tensor], device: torch.device) -> None:
    """Restore a state from :func:`torch_rng_state`; a state without a GPU leaves a GPU's generator unchanged."""
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


def rng_state(device: torch.device) -> dict[str, Any]:
    """Return the state of torch's, NumPy's and Python's generators, as tensors and numbers."""
    _, words, position, has_gauss, gauss = np.random.get_state()
    version, python, next_gauss = random.getstate()
    return {
        "torch": torch_rng_state(device),
        "numpy": [torch.from_numpy(np.asarray(words, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(python), next_gauss],
    }


def set_rng_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Restore a state from :func:`rng_state`."""
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))
    version, python, next_gauss = state["python"]
    random.setstate((version, tuple(python.tolist()), next_gauss))
    set_torch_rng_state(state["torch"], device)


@contextmanager
def reset_modes(program: Any, device: torch.device) -> Iterator[None]:
    """Enable gradients, disable autocast and inference mode, and set the default dtype to the program's."""
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, default)
        stack.enter_context(torch.inference_mode(False))  # which enables gradients, too
        for kind in filter(torch.is_autocast_enabled, {"cpu", device.type}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type not in ("cpu", device.type):
            stack.enter_context(torch.device("cpu"))
        dtypes = [tensor.dtype for tensor in _tensors_of(program) if tensor.is_floating_point()]
        torch.set_default_dtype(default if default in dtypes[:1] or not dtypes else torch.float32)
        yield


@contextmanager
def exclusive(program: Any, device: torch.device) -> Iterator[None]:
    """Run in :func:`reset_modes`; refuse a second thread, and a Pyro handler that changes the program.

    All threads share the generators, Pyro's handlers and Pyro's param store.
    """
    if not LOCK.acquire(blocking=False):
        raise RuntimeError(
            "Expected one thread at a time, since torch's generators and Pyro's handlers are shared; another thread "
            "trains or evaluates. Wait for it, or use one process for each."
        )
    try:
        if handlers := [type(handler).__name__ for handler in _PYRO_STACK if not isinstance(handler, HARMLESS)]:
            raise ValueError(
                f"Expected no Pyro handler around a call that adds handlers to the program; got {handlers[-1]}. "
                "Put it around the program's model or guide."
            )
        with reset_modes(program, device):
            yield
    finally:
        LOCK.release()


def _tensors_of(program: Any) -> list[Tensor]:
    """Return a program's tensors, after copies replace tensors of inference mode, which cannot have a gradient."""
    copies, layers = dict[int, Any](), modules_of(program)
    owners: list[dict[str, Any]] = [layer._parameters for layer in layers] + [layer._buffers for layer in layers]
    names = [(tensors, name) for tensors in owners for name, tensor in tensors.items() if tensor is not None]
    for tensors, name in names:
        if tensors[name].is_inference():
            tensors[name] = deepcopy(tensors[name], copies)
    return [tensors[name] for tensors, name in names]


def normal_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor, or a clone if the tensor comes from inference mode, where autograd cannot record it."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def preserve_state(device: torch.device, *tensors: Tensor) -> Iterator[None]:
    """Restore all random generators, and the values of tensors, when the context ends."""
    before, values = rng_state(device), [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        set_rng_state(before, device)
        for tensor, value in zip(tensors, values, strict=True):
            tensor.detach().copy_(value)


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's generators, and restore them when the context ends.

    See Also:
        :func:`fork_rng`, for torch's generators alone.
    """
    with preserve_state(torch.device(device)):
        _check(seed)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


def _check(seed: Any) -> None:
    """Refuse a seed that torch cannot use."""
    if not isinstance(seed, int | np.integer) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"Expected seed to be a whole number from -2**63 to 2**64 - 1; got {seed!r}.")


@contextmanager
def fork_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Seed torch's generators if there is a seed, and restore them when the context ends.

    Without a seed, draws continue from torch's current state. Generators of other devices stay unchanged, unlike with
    ``torch.manual_seed``.

    Example:
        >>> before = torch.get_rng_state()
        >>> with fork_rng(torch.device("cpu"), seed=1):
        ...     draw = torch.randn(3)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        if seed is not None:
            _check(seed)
            torch.default_generator.manual_seed(seed)
            if on_gpu:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield


def modules_of(program: Any) -> list[nn.Module]:
    """Return each module of a program once, including modules in attributes and tuples of the program."""
    modules: dict[nn.Module, None] = {}
    attributes = [] if isinstance(program, nn.Module) else getattr(program, "__dict__", {}).values()
    waiting = [*attributes, program, getattr(program, "model", None), getattr(program, "guide", None)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, nn.Module) and item not in modules:
            modules |= dict.fromkeys(item.modules())
            # A prior may hold an encoder in a tuple, so that it is none of the prior's modules.
            for layer in item.modules():
                for value in vars(layer).values():
                    waiting += value if isinstance(value, tuple) else ()
    return [*modules]


@contextmanager
def param_store_scope() -> Iterator[None]:
    """Hide the modules in Pyro's param store, so their names are free; restore the store when the context ends."""
    state: Any = pyro.get_param_store().get_state()
    without_modules: Any = {
        kind: {name: value for name, value in entries.items() if "$$$" not in name} for kind, entries in state.items()
    }
    with pyro.get_param_store().scope(without_modules):
        yield


@contextmanager
def eval_mode(program: Any, device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Run in :func:`exclusive`, :func:`fork_rng` and :func:`param_store_scope`, with every layer in evaluation mode.

    Example:
        >>> layer = torch.nn.Dropout()
        >>> with eval_mode(layer, torch.device("cpu")):
        ...     print(layer.training)
        False
        >>> layer.training
        True
    """
    modes = [(layer, layer.training) for layer in modules_of(program)]
    with exclusive(program, device), fork_rng(device, seed), param_store_scope():
        try:
            for layer, _ in modes:
                layer.training = False
            yield
        finally:
            for layer, training in modes:
                layer.training = training
