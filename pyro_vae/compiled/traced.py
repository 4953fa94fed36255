"""A function that becomes a graph where it is called again and again on tensors of one shape."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pyro_vae.compiled.device import device_of
from pyro_vae.compiled.graph import Graph, Undo, can_compile
from pyro_vae.compiled.tape import LooksAtNumber
from pyro_vae.seeds import random_state, set_random_state

Compile = Literal["auto", "off", "graph", "inductor"]
CONSTANT = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
# Work before a compiler has paid for itself: some seconds of compiling, for a half to one nanosecond a number.
PAYS = 1e10
# Calls that a recording takes as long as it saves.
SELDOM = 50
SHAPES = 32


class Outputs(NamedTuple):
    """The outputs of a traced function: its tensors, or None in places; and an object kept from the recorded run."""

    tensors: Sequence[Any]
    kept: Any


@dataclass
class _Entry:
    """One kind of arguments: how often it came, and its graph."""

    first: bool
    recorded: int
    kept: Any
    state: Hashable
    calls: int = 1
    graph: Graph | None = None
    compiled: bool | None = None  # None before a compiler was tried


@dataclass(eq=False)
class Traced:
    """A function of tensors, run as a graph of its tensor operations.

    The first call is the function's own; the second is recorded (:class:`Graph`); the third is run both ways from the
    same random state, and the graph is taken only if the two agree. Where it cannot be recorded, or they differ, a
    warning says so once and the function goes on in plain Pyro. Another shape of the arguments, another number among
    them, or an object of another ``key`` is another graph, recorded where it comes often.

    Arguments:
        function: Of tensors and constants; must depend on nothing else that changes between calls, but tensors.
        compile: ``graph``; ``inductor``, compiled at once, for the first shape; ``auto``, compiled where it has run, or
            is to run for so many ``calls``, that it pays; ``off``, the function itself.
        key: Says what else tells one graph from another; ``state``, from the object kept, what must stay as it is.
        quiet: Whether to go on without a graph, or without a compiler, and not say so.
        recorded: Which call is recorded, of the first shape; of others it is the 50th.
        frozen: Whether tensors that it closes over never change, nor handlers around it its numbers (:class:`Graph`).
    """

    function: Callable[..., Outputs]
    compile: Compile = "auto"
    calls: int | None = None
    key: Callable[[], Hashable] = tuple
    state: Callable[[Any], Hashable] = lambda kept: None
    quiet: bool = False
    recorded: int = 2
    frozen: bool = False

    def __post_init__(self) -> None:
        self.reason = "compile='off'" if self.compile == "off" else ""
        self._entries: dict[Hashable, _Entry] = {}
        self._last: _Entry | None = None
        self._full = False

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> Outputs:
        """Call the function."""
        if self.reason or (am_i_wrapped() and not self.frozen):
            return self.function(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        key = (spec, self.key(), *map(self._describe, leaves))
        entry = self._entries.get(key)
        if entry is None or not self._holds(entry):
            with pyro.validation_enabled():  # which libraries turn off for a whole process
                result = self.function(*args, **kwargs)
            self._remember(key, result.kept)
            return result
        entry.calls += 1
        if entry.calls < entry.recorded:
            result = self.function(*args, **kwargs)
            entry.kept = result.kept
            return result
        self._last = entry
        if entry.graph is None:
            return self._record(entry, leaves, spec)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if entry.calls == entry.recorded + 1:
            return self._check(entry, entry.graph, tensors, args, kwargs)
        if entry.compiled is None and self.compile != "graph":
            self._compile(entry, entry.graph, tensors)
        return Outputs(entry.graph(tensors), entry.kept)

    def record(self, args: tuple, kwargs: dict[str, Any]) -> Outputs:
        """Run, record and compare now, so that arguments like these are a graph from the next call on."""
        outputs = self(args, kwargs)
        if self.reason:
            return outputs
        leaves, spec = tree_flatten((args, kwargs))
        if entry := self._entries.get((spec, self.key(), *map(self._describe, leaves))):
            entry.recorded = min(entry.recorded, entry.calls + 1)
        self(args, kwargs)
        return self(args, kwargs)

    @property
    def mode(self) -> str:
        """How the last arguments that come often are run: ``off``, by the function, ``graph`` or ``inductor``."""
        if self.reason or self._last is None or self._last.graph is None:
            return "off"
        return "inductor" if self._last.compiled else "graph"

    def _describe(self, leaf: Any) -> Hashable:
        if isinstance(leaf, Tensor):
            return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
        if hasattr(leaf, "key"):
            return type(leaf), leaf.key
        if not isinstance(leaf, CONSTANT):
            self._go_on(f"an argument is a {type(leaf).__name__}, which may change unseen; pass tensors and numbers")
        return type(leaf), leaf if isinstance(leaf, CONSTANT) else id(leaf)

    def _holds(self, entry: _Entry) -> bool:
        """Whether the graph's tensors are still those that the function would meet, and are trained or not as then."""
        as_then = entry.graph is None or entry.graph.trained == [tensor.requires_grad for tensor in entry.graph.state]
        return as_then and entry.state == self.state(entry.kept)

    def _remember(self, key: Hashable, kept: Any) -> None:
        before = self._entries.get(key)
        if before or len(self._entries) < SHAPES:
            first = before.first if before else not self._entries
            self._entries[key] = _Entry(first, self.recorded if first else SELDOM, kept, self.state(kept))
        elif not self._full:
            self._full = True
            self._say(
                f"Going on in plain Pyro with further kinds of arguments: got more than {SHAPES}, of which each would "
                "be a graph of its own. Pass numbers that change as tensors.",
                stacklevel=6,
            )

    def _record(self, entry: _Entry, leaves: list[Any], spec: Any) -> Outputs:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        def function(*inputs: Tensor) -> Sequence[Any]:
            rest = iter(inputs)
            args, kwargs = tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)
            result = self.function(*args, **kwargs)
            entry.kept = result.kept
            return result.tensors

        before, undo = random_state(device_of(tensors)), Undo()
        reason = "anomaly detection looks at the numbers in gradients" if torch.is_anomaly_enabled() else ""
        try:
            with pyro.validation_enabled(False), undo:
                entry.graph = None if reason else Graph(function, tensors, self.frozen)
        except Exception as error:
            reason = "it looks at a number in a tensor" if isinstance(error, LooksAtNumber) else _words(error)
        if entry.graph is None:
            self._go_on(reason)
            undo.swap()
            set_random_state(before, device_of(tensors))
            args, kwargs = tree_unflatten(leaves, spec)
            return self.function(*args, **kwargs)
        outputs, entry.graph.outputs = entry.graph.outputs, ()
        return Outputs([None if output is None else output.detach() for output in outputs], entry.kept)

    def _check(self, entry: _Entry, graph: Graph, tensors: list[Tensor], args: tuple, kwargs: dict) -> Outputs:
        """Run function and graph from one state; return the function's outputs where the graph's are others."""
        before = random_state(device_of(tensors))
        with Undo() as undo:
            result = self.function(*args, **kwargs)
        undo.swap()
        set_random_state(before, device_of(tensors))
        reason = "run again it gives another result; does it draw with NumPy, or change what is no tensor?"
        try:
            outputs = graph(tensors)
            if all(map(_close, result.tensors, outputs)):
                return Outputs(outputs, entry.kept)
        except RuntimeError as error:
            shapes = "a shape in it follows from the numbers; in place of x[x > 0] use torch.where"
            chosen = any(torch.Tag.dynamic_output_shape in node.target.tags for node in graph.nodes)
            reason = shapes if chosen else _words(error)
        undo.swap()
        self._go_on(reason)
        return result

    def _compile(self, entry: _Entry, graph: Graph, tensors: list[Tensor]) -> None:
        """Compile where that pays for itself, and the first shape for ``inductor`` in any case."""
        # How many calls there were does not count where it is known how many come: a run that goes on is as one.
        calls = entry.calls if self.calls is None else 0.5 * self.calls * entry.first
        pays = calls * graph.work >= PAYS and can_compile(device_of(tensors))
        if not pays and not (self.compile == "inductor" and entry.first):
            return
        entry.compiled = False
        try:
            graph.compile(tensors)
            entry.compiled = True
        except Exception as error:
            self._say(
                f"Expected TorchInductor to compile the step; it did not ({' '.join(str(error).split())[:150]}). "
                "Going on with the graph as it is, which compile='graph' asks for.",
                stacklevel=6,
            )

    def _go_on(self, reason: str) -> None:
        self.reason = reason
        self._say(f"Going on in plain Pyro: the step cannot be run as a graph ({reason}).", stacklevel=7)

    def _say(self, words: str, stacklevel: int) -> None:
        if not self.quiet:
            warnings.warn(words, stacklevel=stacklevel)


def _words(error: Exception) -> str:
    """Torch's own words, without the shapes of every site that Pyro adds."""
    return f"{type(error).__name__}: {' '.join(str(error).partition('Trace Shapes:')[0].split())[:150]}"


def _close(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two outputs are equal to rounding, or both None."""
    if one is None or other is None:
        return one is other
    size = one.detach().abs().nan_to_num().amax().item() if one.numel() else 0.0
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5 * size, equal_nan=True)
