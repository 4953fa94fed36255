"""Memory that the C library reuses, and the batch size that fits in memory."""

import platform
import subprocess
import sys

import pytest
import torch

from pyro_vae.compiled import device

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
    assert after < max(before / 10, 1_000)


def test_what_a_process_does_once_does_not_count_as_memory_of_a_batch(monkeypatch):
    """The measurement of products writes 20 MB, of which a first run of one row would seem to consist."""
    device.products_are_faster.cache_clear()
    device.reuse_freed_memory.cache_clear()

    def run(n):
        with device.fast_products("auto"):
            device.reuse_freed_memory()
            return torch.ones(n, 1000) + 1

    assert device.max_batch_size(run, 1000, budget=2**20) == 2**20 // 8000
