"""What a run was made with: versions, command, seed, git commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["changes", "environment"]

PACKAGES = ("pyro_vae", "pyro-ppl", "torch", "torchvision", "numpy", "arviz", "scikit-learn")
# On these the last bits of a number depend.
BITS = ("python", "threads", "processor", "instructions", "gpus", "packages")


def environment(seed: int | None) -> dict[str, Any]:
    """Return what a run is made with, as plain data: what its last bits depend on, and what tells where it was made."""
    return {
        "command": sys.argv,
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_GiB": _memory(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: version(name) for name in PACKAGES},
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what differs between two environments that last bits depend on; nothing if nothing does.

    Example:
        >>> changes({"threads": 2, "packages": {"torch": "2.5.1"}}, {"threads": 1, "packages": {"torch": "2.14.1"}})
        'threads 2, now 1; torch 2.5.1, now 2.14.1'
    """
    pairs = [(name, before[name], now.get(name)) for name in BITS if name in before and name != "packages"]
    packages = before.get("packages")
    if isinstance(packages, Mapping):
        pairs += [(name, was, now["packages"].get(name)) for name, was in packages.items()]
    return "; ".join(f"{name} {was}, now {is_now}" for name, was, is_now in pairs if was != is_now)


def _git() -> dict[str, Any] | None:
    """Return the commit of the repository that this was started in, and whether files differ from it."""
    commit = _told("git", "rev-parse", "HEAD")
    changed = _told("git", "-c", "core.fsmonitor=false", "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"commit": commit, "changed": bool(changed)}


def _told(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
