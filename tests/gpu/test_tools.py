"""Do whole models train in mixed precision by the tools, alone and under torchrun, and go on?

They need OpenMMLab.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")

from tests.conftest import free_port
from tests.gpu.conftest import error
from tests.roof.test_tools import DETECTION, SEGMENTATION, options, shapes  # noqa: F401

TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "1", "--master-port"]


def weights(path: Path) -> torch.Tensor:
    state = torch.load(path, weights_only=False)["state_dict"].values()
    return torch.cat([value.flatten().float() for value in state])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("config", [DETECTION, SEGMENTATION])
def test_a_resumed_training_comes_to_the_same(config, device, shapes, tmp_path, run_tool):  # noqa: F811
    """On a GPU up to rounding, for sums there come in any order."""
    env = {**shapes, **({"CUDA_VISIBLE_DEVICES": ""} if device.type == "cpu" else {})}
    train = ["hire_mlp_mm", "train", config, "--work-dir", tmp_path, "--amp"]
    if config == SEGMENTATION:
        train = [*TORCHRUN, free_port(), "-m", *train, "--launcher", "pytorch"]
    done = run_tool("-m", *train, *options(6, 2), env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = weights(tmp_path / "iter_6.pth")
    for iteration in (4, 6):
        (tmp_path / f"iter_{iteration}.pth").unlink()
    done = run_tool("-m", *train, *options(6, 2), "--resume", env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "iter: 2" in done.stdout
    again = weights(tmp_path / "iter_6.pth")
    assert error(again, whole) <= (0 if device.type == "cpu" else 1e-3)
