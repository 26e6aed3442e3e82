"""Is freed memory kept, and handed back, as it is asked for?"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Linux counts the pages that it gives a process: 64 MiB are 16,384, or fewer if they are large.
SCRIPT = """
import ctypes, resource, sys
sys.path.insert(0, sys.argv[1])
sys.argv[0] = "hire-mlp"  # else the package would import OpenMMLab
from hire_mlp_mm import memory
for name in sys.argv[2:]:
    getattr(memory, name)()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def use():
    piece = libc.malloc(2**26)
    ctypes.memset(piece, 1, 2**26)
    libc.free(ctypes.c_void_p(piece))
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(*steps: str, **environment: str) -> int:
    """Count the pages that Linux gives a process that uses 64 MiB ten times."""
    command = [sys.executable, "-c", SCRIPT, str(ROOT), *steps]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=100
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
@pytest.mark.parametrize(
    ("steps", "environment", "kept"),
    [
        ([], {}, False),
        (["keep_memory"], {}, True),
        (["return_memory", "keep_memory"], {}, True),
        (["keep_memory", "return_memory"], {}, False),
        (["keep_memory", "restore_defaults"], {}, False),
        (["keep_memory"], {"MALLOC_ARENA_MAX": "2"}, False),
    ],
)
def test_freed_memory_is_kept_or_handed_back(steps, environment, kept):
    assert (pages(*steps, **environment) < 100) == kept
