"""Functions of tensors that run as a graph after calls on the same shapes."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from pyro_vae.compiled.checking import compare, short
from pyro_vae.compiled.device import device_of, reuse_freed_memory
from pyro_vae.compiled.graph import Graph, Undo, can_compile
from pyro_vae.compiled.tape import DataDependent
from pyro_vae.seeds import set_torch_rng_state, torch_rng_state

Compile = Literal["auto", "off", "graph", "inductor"]
CONSTANT = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
COMPILE_AFTER = 1e10  # elements of work: compiling takes seconds, and saves up to one nanosecond an element
RECORD_AFTER = 50  # calls of further shapes: to record a graph takes as long as it saves in these
MAX_GRAPHS = 32


class Outputs(NamedTuple):
    """The outputs of a :class:`GraphedFunction`: tensors or None, and an object kept from the recorded run."""

    tensors: Sequence[Any]
    kept: Any


@dataclass
class _Entry:
    """The graph of one kind of arguments, and the number of their calls."""

    first: bool
    recorded: int
    kept: Any
    state: Hashable
    calls: int = 1
    graph: Graph | None = None
    compiled: bool | None = None  # None before the first attempt to compile


@dataclass(eq=False)
class GraphedFunction:
    """A function of tensors that runs as a graph of its tensor operations.

    The first call runs the function. The second call records a ``pyro_vae.compiled.graph.Graph``. The third call
    runs function and graph from the same random state. If the results agree, later calls run the graph. If the results
    differ or the recording fails, one warning says why, and all calls run the function. Arguments of other shapes,
    other constants, or another ``key`` have another graph, recorded at call ``RECORD_AFTER``.

    Arguments:
        function: Maps tensors and constants to :class:`Outputs`. Between calls, only tensors that the function closes
            over may change.
        compile: How calls run: ``graph``; ``inductor``, with the first shape's graph compiled at once; ``auto``, a
            graph, compiled if its past calls or half of the expected ``calls`` repay the compile time; ``off``.
        calls: The expected number of calls, if known.
        key: Function that returns a further key of the graph, besides shapes and constants.
        state: Function of ``Outputs.kept``. A graph is valid while the returned value stays equal.
        quiet: Whether to fall back without a warning.
        frozen: Whether the closed-over tensors never change, and handlers around the function do not change the
            function's values.
    """

    function: Callable[..., Outputs]
    compile: Compile = "auto"
    calls: int | None = None
    key: Callable[[], Hashable] = tuple
    state: Callable[[Any], Hashable] = lambda kept: None
    quiet: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        reuse_freed_memory()
        self.reason = "compile='off'" if self.compile == "off" else ""
        self._entries: dict[Hashable, _Entry] = {}
        self._last: _Entry | None = None
        self._full = False

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> Outputs:
        """Call the function, or run its graph."""
        if self.reason or (am_i_wrapped() and not self.frozen):
            return self.function(*args, **kwargs)
        leaves, spec = _flatten(args, kwargs)
        key = (spec, self.key(), *map(self._describe, leaves))
        entry = self._entries.get(key)
        if entry is None or not self._is_valid(entry):
            with pyro.validation_enabled():  # which some libraries disable for the whole process
                result = self.function(*args, **kwargs)
            self._add_entry(key, result.kept)
            return result
        entry.calls += 1
        if entry.calls < entry.recorded:
            result = self.function(*args, **kwargs)
            entry.kept = result.kept
            return result
        self._last, tensors = entry, [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if entry.graph is None:
            return self._record(entry, tensors, args, kwargs)
        if entry.calls == entry.recorded + 1:
            return self._check(entry, entry.graph, tensors, args, kwargs)
        if entry.compiled is None and self.compile != "graph":
            self._compile(entry, entry.graph, tensors)
        return Outputs(entry.graph(tensors), entry.kept)

    def record(self, args: tuple, kwargs: dict[str, Any]) -> Outputs:
        """Call, record and compare now, so that the next call on arguments like these runs the graph."""
        outputs = self(args, kwargs)
        if self.reason:
            return outputs
        leaves, spec = _flatten(args, kwargs)
        if entry := self._entries.get((spec, self.key(), *map(self._describe, leaves))):
            entry.recorded = min(entry.recorded, entry.calls + 1)
        self(args, kwargs)
        return self(args, kwargs)

    @property
    def mode(self) -> str:
        """The mode of a call on the last recorded arguments, ``off`` (the function), ``graph`` or ``inductor``."""
        if self.reason or self._last is None or self._last.graph is None:
            return "off"
        return "inductor" if self._last.compiled else "graph"

    def _describe(self, leaf: Any) -> Hashable:
        """Return what of an argument distinguishes graphs."""
        if isinstance(leaf, Tensor):
            return leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
        if hasattr(leaf, "key"):
            return type(leaf), leaf.key
        if not isinstance(leaf, CONSTANT):
            kind = type(leaf).__name__
            self._fall_back(f"an argument of type {kind} may change between calls; pass tensors and constants")
        return type(leaf), leaf if isinstance(leaf, CONSTANT) else id(leaf)

    def _is_valid(self, entry: _Entry) -> bool:
        """Whether the function would still use the graph's tensors, with the same ``requires_grad``."""
        graph = entry.graph
        same = graph is None or graph.trained == [tensor.requires_grad for tensor in graph.state]
        return same and entry.state == self.state(entry.kept)

    def _add_entry(self, key: Hashable, kept: Any) -> None:
        """Add an entry for a new kind of arguments, or renew one that is no longer valid."""
        before = self._entries.get(key)
        if before or len(self._entries) < MAX_GRAPHS:
            first = before.first if before else not self._entries
            self._entries[key] = _Entry(first, 2 if first else RECORD_AFTER, kept, self.state(kept))
        elif not self._full:
            self._full = True
            limit = f"Expected at most {MAX_GRAPHS} combinations of shapes and constants, with a graph each; got more"
            advice = "Further ones run in plain Pyro. Pass numbers that change as tensors"
            self._warn(f"{limit}. {advice}.", stacklevel=6)

    def _record(self, entry: _Entry, tensors: list[Tensor], args: tuple, kwargs: dict[str, Any]) -> Outputs:
        """Record the graph while the function runs; fall back if that fails."""

        def function(*inputs: Tensor) -> Sequence[Any]:
            rest = iter(inputs)
            positional, named = tree_map_only(Tensor, lambda _: next(rest), (args, kwargs))
            result = self.function(*positional, **named)
            entry.kept = result.kept
            return result.tensors

        before, undo = torch_rng_state(device_of(tensors)), Undo()
        reason = "anomaly detection reads the values of gradients" if torch.is_anomaly_enabled() else ""
        try:
            with pyro.validation_enabled(False), undo:
                entry.graph = None if reason else Graph(function, tensors, self.frozen)
        except DataDependent:
            reason = "it reads a number from a tensor, by .item() or a branch"
        except Exception as error:
            reason = short(error)
        if entry.graph is None:
            self._fall_back(reason)
            undo.swap()
            set_torch_rng_state(before, device_of(tensors))
            return self.function(*args, **kwargs)
        outputs, entry.graph.outputs = entry.graph.outputs, ()
        return Outputs([None if output is None else output.detach() for output in outputs], entry.kept)

    def _check(self, entry: _Entry, graph: Graph, tensors: list[Tensor], args: tuple, kwargs: dict) -> Outputs:
        """Run function and graph from one random state; return the graph's outputs if they agree, else fall back."""
        result, outputs, reason = compare(partial(self.function, *args, **kwargs), graph, tensors)
        if outputs is not None:
            return Outputs(outputs, entry.kept)
        self._fall_back(reason)
        return result

    def _compile(self, entry: _Entry, graph: Graph, tensors: list[Tensor]) -> None:
        """Compile a graph if that pays, and the first shape's for ``inductor`` in any case."""
        # With known ``calls`` the calls so far do not count: a resumed run compiles as an uninterrupted one.
        calls = entry.calls if self.calls is None else 0.5 * self.calls * entry.first
        pays = calls * graph.work >= COMPILE_AFTER and can_compile(device_of(tensors))
        if not pays and not (self.compile == "inductor" and entry.first):
            return
        entry.compiled = False
        try:
            graph.compile(tensors)
            entry.compiled = True
        except Exception as error:
            reason = " ".join(str(error).split())[:150]
            advice = "The graph runs without it. Set compile='graph' to silence this warning"
            self._warn(f"Expected TorchInductor to compile the step; it failed ({reason}). {advice}.", stacklevel=6)

    def _fall_back(self, reason: str) -> None:
        """Run the function from now on, and warn."""
        self.reason = reason
        self._warn(f"Falling back to plain Pyro: the step cannot run as a graph ({reason}).", stacklevel=7)

    def _warn(self, message: str, stacklevel: int) -> None:
        if not self.quiet:
            warnings.warn(message, stacklevel=stacklevel)


def _flatten(args: tuple, kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """Return the tensors and constants in arguments, and how they are nested; None if the arguments are a flat list."""
    if not kwargs and all(isinstance(argument, (Tensor, *CONSTANT)) for argument in args):
        return [*args], None
    return tree_flatten((args, kwargs))
