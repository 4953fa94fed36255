"""Compare a function with its graph."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compiled.device import device_of
from pyro_vae.compiled.graph import Graph, Undo
from pyro_vae.seeds import set_torch_rng_state, torch_rng_state

ROUNDING = 0.02  # relative, after simplification: weights of importance magnify the rounding of log densities


def compare(
    function: Callable[[], Any], graph: Graph, tensors: Sequence[Tensor]
) -> tuple[Any, Sequence[Any] | None, str]:
    """Run a function and its graph from one random state.

    Returns:
        The function's result; the graph's outputs, or None if they differ or the graph raises an error; and the reason.
        Operations as recorded give the function's numbers. If the simplified ones are far off or impossible, the graph
        keeps the recorded ones.
    """
    before = torch_rng_state(device_of(tensors))

    def run(function: Callable[..., Any], *args: Any) -> tuple[Any, Undo]:
        set_torch_rng_state(before, device_of(tensors))
        undo = Undo()
        try:
            with undo:
                return function(*args), undo
        except RuntimeError:
            undo.swap()
            raise

    result, undo = run(function)
    undo.swap()
    reason = "a second run differs; does it draw with NumPy, or change a number that is no tensor?"
    try:
        exact, again = run(graph.run_recorded, tensors)
        if all(map(close, result.tensors, exact)):
            again.swap()
            with suppress(RuntimeError):  # of a view that simpler operations make impossible
                outputs, last = run(graph, tensors)
                if all(map(partial(close, relative=ROUNDING), result.tensors, outputs)):
                    return result, outputs, ""
                last.swap()
            graph.keep_recorded()
            return result, run(graph, tensors)[0], ""
    except RuntimeError as error:
        dynamic = any(torch.Tag.dynamic_output_shape in node.target.tags for node in graph.nodes)
        advice = "the values of a tensor decide a shape; use torch.where in place of x[x > 0]"
        reason = advice if dynamic else short(error)
    undo.swap()
    return result, None, reason


def short(error: Exception) -> str:
    """Return the start of an error's message, without the shapes of each site, which Pyro adds."""
    return f"{type(error).__name__}: {' '.join(str(error).partition('Trace Shapes:')[0].split())[:150]}"


def close(a: Tensor | None, b: Tensor | None, relative: float = 1e-4) -> bool:
    """Whether two outputs are equal up to a relative error, or both None."""
    if a is None or b is None:
        return a is b
    size = a.detach().abs().nan_to_num().amax().item() if a.numel() else 0.0
    return torch.allclose(a, b, rtol=relative, atol=relative / 10 * size, equal_nan=True)
