"""What a call puts back: the state of random generators, Pyro's param store, and the mode of a program's layers."""

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

BUSY = threading.RLock()
HARMLESS = (BlockMessenger, SeedMessenger)  # handlers that change no site of a program with handlers of its own


def random_state(device: torch.device) -> list[Tensor]:
    """Return where torch's generators are, of the CPU and of a GPU."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    """Put torch's generators where they were; that of a GPU stays where the state is of a CPU alone."""
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


def generators(device: torch.device) -> dict[str, Any]:
    """Return where all generators are, torch's, NumPy's and Python's: tensors and numbers."""
    _, words, position, has_gauss, gauss = np.random.get_state()
    version, python, next_gauss = random.getstate()
    return {
        "torch": random_state(device),
        "numpy": [torch.from_numpy(np.asarray(words, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(python), next_gauss],
    }


def set_generators(state: Mapping[str, Any], device: torch.device) -> None:
    """Put all generators back to a state from :func:`generators`."""
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))
    version, python, next_gauss = state["python"]
    random.setstate((version, tuple(python.tolist()), next_gauss))
    set_random_state(state["torch"], device)


@contextmanager
def undisturbed(program: Any, device: torch.device) -> Iterator[None]:
    """Run as in a script of its own: with gradients, without autocast, in the program's dtype, whatever is around."""
    usual = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, usual)
        stack.enter_context(torch.inference_mode(False))  # which turns gradients on, too
        for kind in filter(torch.is_autocast_enabled, {"cpu", device.type}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type not in ("cpu", device.type):
            stack.enter_context(torch.device("cpu"))
        dtypes = [tensor.dtype for tensor in _own(program) if tensor.is_floating_point()]
        torch.set_default_dtype(usual if usual in dtypes[:1] or not dtypes else torch.float32)
        yield


@contextmanager
def alone(program: Any, device: torch.device) -> Iterator[None]:
    """As :func:`undisturbed`; refuse to begin while another thread has begun, and handlers that change the program.

    All threads share generators, Pyro's handlers and its store.
    """
    if not BUSY.acquire(blocking=False):
        raise RuntimeError(
            "Expected one thread at a time, since torch's generators and Pyro's handlers are shared; another thread "
            "trains or evaluates. Wait for it, or use a process for each."
        )
    try:
        if handlers := [type(one).__name__ for one in _PYRO_STACK if not isinstance(one, HARMLESS)]:
            raise ValueError(
                "Expected no Pyro handler around a call that runs a program with handlers of its own; got "
                f"{handlers[-1]}. Put it around the program's model or guide."
            )
        with undisturbed(program, device):
            yield
    finally:
        BUSY.release()


def _own(program: Any) -> list[Tensor]:
    """Return a program's tensors, with copies in place of those of inference mode, which can have no gradient."""
    copies, layers = dict[int, Any](), modules_of(program)
    held: list[dict[str, Any]] = [layer._parameters for layer in layers] + [layer._buffers for layer in layers]
    own = [(tensors, name) for tensors in held for name, tensor in tensors.items() if tensor is not None]
    for tensors, name in own:
        if tensors[name].is_inference():
            tensors[name] = deepcopy(tensors[name], copies)
    return [tensors[name] for tensors, name in own]


def tracked(tensor: Tensor) -> Tensor:
    """Return a tensor that has a part in gradients: a copy of one that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def unmoved(device: torch.device, *tensors: Tensor) -> Iterator[None]:
    """Put all generators back afterwards, and the numbers of tensors."""
    before, numbers = generators(device), [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        set_generators(before, device)
        for tensor, values in zip(tensors, numbers, strict=True):
            tensor.detach().copy_(values)


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed all generators, torch's of the CPU and of a device, for as long as the context lasts."""
    with unmoved(torch.device(device)):
        _check(seed)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


def _check(seed: Any) -> None:
    if not isinstance(seed, int | np.integer) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"Expected seed to be a whole number from -2**63 to 2**64 - 1; got {seed!r}.")


@contextmanager
def forked(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Draw from a seed, or without one from torch's state; put that state back afterwards.

    A second call draws the same, unless it or torch gets another seed. Unlike ``torch.manual_seed``, it touches no
    generator of another device.

    Example:
        >>> before = torch.get_rng_state()
        >>> with forked(torch.device("cpu"), seed=1):
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
    """Return every module of a program, each once: those that it holds as attributes or in tuples, too."""
    modules: dict[nn.Module, None] = {}
    attributes = [] if isinstance(program, nn.Module) else getattr(program, "__dict__", {}).values()
    waiting = [*attributes, program, getattr(program, "model", None), getattr(program, "guide", None)]
    while waiting:
        item = waiting.pop()
        if isinstance(item, nn.Module) and item not in modules:
            modules |= dict.fromkeys(item.modules())
            # A prior may hold an encoder that is none of its modules, in a tuple.
            for layer in item.modules():
                for value in vars(layer).values():
                    waiting += value if isinstance(value, tuple) else ()
    return [*modules]


@contextmanager
def own_store() -> Iterator[None]:
    """Put Pyro's param store back, and give a store without modules, whose names other modules may then have."""
    state: Any = pyro.get_param_store().get_state()
    own: Any = {kind: {name: one for name, one in known.items() if "$$$" not in name} for kind, known in state.items()}
    with pyro.get_param_store().scope(own):
        yield


@contextmanager
def at_test(program: Any, device: torch.device, seed: int | None = None) -> Iterator[None]:
    """As :func:`forked`, with all layers in evaluation mode and a param store of its own; put these back too.

    Example:
        >>> layer = torch.nn.Dropout()
        >>> with at_test(layer, torch.device("cpu")):
        ...     print(layer.training)
        False
        >>> layer.training
        True
    """
    modes = [(layer, layer.training) for layer in modules_of(program)]
    with alone(program, device), forked(device, seed), own_store():
        try:
            for layer, _ in modes:
                layer.training = False
            yield
        finally:
            for layer, training in modes:
                layer.training = training
