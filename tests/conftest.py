"""Shared by all tests: mmdet on mmcv-lite, a small thread count, the tiny data sets."""

from __future__ import annotations

import os

# The models of the tests are small and the tests run side by side: one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing
import runpy
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo

with suppress(ModuleNotFoundError):  # where there is torch alone, as for some tests in tests/gpu
    import hire_mlp_mm.mmcv_ops  # noqa: F401  before any test imports mmdet

torch.set_num_threads(1)
pytest.register_assert_rewrite("tests.reference")  # it asks, too
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "dev")]

NANO = dict(
    depths=(1, 2, 4, 2), dims=(8, 12, 16, 20), region_sizes=(4, 3, 3, 2), shift_periods=(2, 2, 3, 2)
)
SHALLOW = dict(depths=(2,), dims=(16,), region_sizes=(4,), shift_periods=(2,), shift_steps=(2,),
               mlp_ratios=(4,))  # fmt: skip


# Of a process that imports a host: mmdet and mmseg cannot be imported on mmcv-lite alone, and the
# package's stand-in for the ops would come with the package; here is one that has nothing.
WITHOUT_OPS = """
import importlib.machinery, sys, types
ops = types.ModuleType("mmcv._ext")
ops.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
ops.__getattr__ = lambda name: None
sys.modules["mmcv._ext"] = ops
"""


needs_compiler = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "recompile_limit"),
    reason="torch 2.6 cannot compile or export sizes that are free",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """A hardened run in a test's process says for good how its files are read: not for others."""
    names = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.get(name) for name in names}
    result = yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return result


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_process_left():
    """What a test that failed or took too long has started ends with it."""
    yield
    for process in multiprocessing.active_children():
        if not process.daemon:
            process.kill()


@pytest.fixture
def run_tool():
    """Run a tool from the project's root; returns the finished process."""

    def run(*args: object, env: dict[str, str] | None = None, cwd: Path = ROOT, timeout: int = 300):
        command = [sys.executable, *map(str, args)]
        return subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def fork_tool(tmp_path_factory):
    """`run_tool`, without the seconds of its imports: from a process that has made them."""
    import chaos

    def fork(*args: object, env: dict[str, str] | None = None, cwd: Path = ROOT):
        command = [*map(str, args)]
        files = [tmp_path_factory.mktemp("said") / name for name in ("out", "err")]
        process = chaos.preloaded().Process(
            target=in_fork, args=(command, {**os.environ, **(env or {})}, cwd, files)
        )
        process.start()
        process.join()
        said = [file.read_text() for file in files]
        return subprocess.CompletedProcess(command, process.exitcode, *said)

    return fork


def in_fork(command: list[str], env: dict[str, str], cwd: Path, files: list[Path]) -> None:
    """A tool in this process, which is its own."""
    import chaos

    chaos.settle(env)
    os.chdir(cwd)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), number)
    np.random.seed()  # mmengine draws seeds by it; forked, all would draw the same
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


@pytest.fixture
def guarded(monkeypatch):
    """The engine's way of loading in this process, and afterwards the way it was."""
    from mmengine.runner import CheckpointLoader

    from hire_mlp_mm.engine.checkpoints import read_as_data

    monkeypatch.setattr(CheckpointLoader, "_schemes", CheckpointLoader._schemes.copy())
    for variable in ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        monkeypatch.setenv(variable, "0")  # so that it is put back, or away
    read_as_data()


def free_port() -> str:
    """A port that nobody listens on at present."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])
