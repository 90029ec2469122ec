"""What a worker frees stays with it: the next batch finds its pages there."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource
from sae_backend import memory
{keep}
take, give = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
take.restype, give.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def batch():
    block = take(8 << 20)
    ctypes.memset(block, 1, 8 << 20)
    give(block)
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: str) -> int:
    return int(subprocess.check_output([sys.executable, "-c", FAULTS.format(keep=keep)], text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other options")
def test_blocks_of_a_batch_are_not_faulted_in_again() -> None:
    assert faults("assert memory.keep_freed()") < 100 < 1000 < faults("ctypes.CDLL(None).mallopt(-3, 1 << 20)")
