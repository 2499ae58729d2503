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


_HOLES = """
import resource
from pathlib import Path

from common.utils.malloc import freed_memory_kept, freed_memory_returned

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

for memory in (freed_memory_returned, freed_memory_kept):
    with memory():
        before = resident_mib()
        mixed = [b"x" * size for _ in range(20) for size in (4 * 2**20, 2**10)]
        del mixed[::2]  # the large ones: each leaves a hole between two small ones
        print(resident_mib() - before)
    del mixed
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_holes_are_returned_where_memory_is_short() -> None:
    out = subprocess.run(
        [sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True
    ).stdout.split()
    returned, kept = map(float, out)
    assert returned < 10 and kept > 60
