"""Memory that the C library reuses."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource

import torch

from pyro_vae.compiled.device import reuse_freed_memory


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.ones(1_500_000) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults()
first = faults()
reuse_freed_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_reused(monkeypatch):
    """Four blocks of 6 MB, ten times: 60,000 pages are new if the system gets them back, and few if not."""
    for name in ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    if before < 10_000:
        pytest.skip("the system has pages of other sizes, or does not take memory back")
    assert after < before / 10
