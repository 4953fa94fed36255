"""Timing of the benchmark's rivals in turn, and the peak memory of a step."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import pyro
import torch
from torch.profiler import ProfilerActivity, profile

from pyro_vae.compiled import fast_products

__all__ = ["cpu_name", "in_turn", "peak", "switch", "within"]

Step = Callable[[], Any]


@contextmanager
def switch(on: bool) -> Iterator[None]:
    """Switch torch's fast float32 products on, as an expert would where they pay, or leave torch's default."""
    with fast_products("auto" if on else "float32"):
        yield


def in_turn(contestants: dict[str, tuple[Step, bool]], rounds: int) -> dict[str, Any]:
    """Return the median milliseconds per step of each contestant, timed in turn, and CPU time over wall time.

    With one thread the milliseconds are CPU time, with several the time of a clock.
    """
    one_thread = torch.get_num_threads() == 1
    found: dict[str, list[float]] = {name: [] for name in contestants}
    steps: dict[str, int] = {}
    share = []
    for turn in range(rounds + 1):
        for name, (step, on) in contestants.items():
            with switch(on):
                step()
                wall, cpu = time.perf_counter(), time.process_time()
                for _ in range(steps.get(name, 1)):
                    step()
                clock, cpu = time.perf_counter() - wall, time.process_time() - cpu
                share.append(cpu / clock)
                spent = cpu if one_thread else clock
            if turn == 0:
                steps[name] = max(1, round(0.1 / spent))
            else:
                found[name].append(1e3 * spent / steps[name])
    return {name: median(times) for name, times in found.items()} | {"cpu": median(share)}


def peak(step: Step) -> float:
    """Return the peak of additional tensor memory in a step, in megabytes."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    results: Any = profiler.profiler
    changes = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def within(store: Any, step: Step) -> Any:
    """Take a step in a separate param store, since another VAE has the same names."""
    with pyro.get_param_store().scope(store):
        return step()


def cpu_name() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()
