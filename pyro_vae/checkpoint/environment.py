"""The environment of a run: versions, command, seed, git commit and hardware."""

import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("pyro_vae", "pyro-ppl", "torch", "torchvision", "numpy", "arviz", "scikit-learn")


def environment(seed: int | None) -> dict[str, Any]:
    """Return versions, command, seed, git commit and hardware."""
    file, memory = Path("/proc/cpuinfo"), None
    processors = re.findall(r"^model name\s*: *(.*\S)", file.read_text() if file.is_file() else "", re.MULTILINE)
    with suppress(AttributeError, ValueError, OSError):  # not on Windows
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {
        "command": sys.argv,
        "directory": str(Path.cwd()),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": next(iter(processors), platform.processor()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_GiB": memory,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: version(name) for name in PACKAGES},
    }


def _git() -> dict[str, Any] | None:
    """Return the commit of the current repository, and whether files differ from it; None outside a repository."""
    status = "git -c core.fsmonitor=false status --porcelain --untracked-files=no"
    settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
    try:
        commit, changed = (subprocess.run(c.split(), **settings).stdout for c in ("git rev-parse HEAD", status))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": bool(changed)}
