"""Where these tests run: on a GPU with `--device cuda`, else on the CPU, as a rehearsal.

Torch, torchvision and what pytest needs are enough for all of them but `test_engine.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import NANO

# The norm of a difference over that of the float32 numbers, at most.
MOST = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}
TOLD = pytest.StashKey[list[str]]()


def error(ours: Tensor, theirs: Tensor) -> float:
    """The norm of the difference over the norm."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def gradient(model: nn.Module, images: Tensor) -> Tensor:
    """Of the mean squares of all maps, for all parameters."""
    model.zero_grad()
    sum((out**2).mean() for out in model(images)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="that tests/gpu is run on")


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(TOLD, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    # The option is unknown where the whole suite is run.
    return torch.device(request.config.getoption("--device", "cpu"))


@pytest.fixture
def gpu(device) -> torch.device:
    """The device of what a CPU cannot do."""
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    return device


@pytest.fixture(scope="session")
def arch(device) -> str | dict:
    """Of networks that are larger on a GPU than on a CPU."""
    return NANO if device.type == "cpu" else "small"


@pytest.fixture
def tell(request) -> Callable[[str], None]:
    """Have a figure printed at the end."""
    return request.config.stash.setdefault(TOLD, []).append


@pytest.fixture(autouse=True)
def float32_is_float32():
    """And not TF32, in convolutions and products."""
    libraries = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [library.allow_tf32 for library in libraries]
    for library in libraries:
        library.allow_tf32 = False
    yield
    for library, allow in zip(libraries, before, strict=True):
        library.allow_tf32 = allow
