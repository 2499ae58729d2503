"""Freed memory is kept while it will be wanted again, and given back afterwards."""

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource
from pathlib import Path

from common.utils.malloc import freed_memory_kept

MIB = 2**20

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MIB

def use():
    blocks = [b"x" * (20 * MIB) for _ in range(5)]

before = resident_mib()
with freed_memory_kept():
    use()
    faults = page_faults()
    for _ in range(5):
        use()
    print(page_faults() - faults, resident_mib() - before)
print(resident_mib() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_no_page_is_taken_twice_and_all_are_given_back() -> None:
    out = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    ).stdout.split()
    faults, kept_mib, left_mib = (float(value) for value in out)
    assert faults < 100  # 25,600 pages a turn
    assert kept_mib > 90
    assert left_mib < 10
