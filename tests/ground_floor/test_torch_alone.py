"""Is torch all that the network, its weights and its inference form need?"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from hire_mlp_mm import HireMLPNet
from tests.conftest import NANO, ROOT
from tests.first_floor.test_loading import training

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""
OTHERS = "mmengine,mmcv,mmdet,mmseg,mmpretrain,torchvision"
USE = """
import torch, hire_mlp_mm
import hire_mlp_mm.bench
from hire_mlp_mm import HireMLPNet, checkpoint, compiling, fuse, load_weights, weights
assert not set(sys.argv[1].split(",")) & set(sys.modules)
arch = eval(sys.argv[3])
net = HireMLPNet(arch).eval()
said = str(load_weights(net, sys.argv[2]))
assert said == f"{sys.argv[2]}: loaded {len(net.state_dict())} tensors", said
state = checkpoint.read_backbone(sys.argv[2])
assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
images = torch.randn(1, 3, 64, 64)
with torch.no_grad():
    for a, b in zip(net(images), fuse.fuse(net)(images)):
        assert (a - b).abs().max() < 1e-3
assert "small" in weights.WEIGHTS
assert not set(sys.argv[1].split(",")) & set(sys.modules)
assert {"HireMLP", "HireMLPNet", "fuse"} <= set(dir(hire_mlp_mm))
"""
ASK = """
import hire_mlp_mm
try:
    from hire_mlp_mm import NAME
except ImportError as error:
    print(error)
"""


def run(code: str, *args: object) -> str:
    """What a program prints, which has to succeed and say nothing else."""
    command = [sys.executable, "-W", "ignore:pkg_resources", "-c", code, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.fixture
def weights(tmp_path):
    """Of a training by mmengine, whose log there is nobody to read."""
    state = HireMLPNet(NANO).state_dict()
    torch.save({**training(), "state_dict": state}, tmp_path / "file.pth")
    return tmp_path / "file.pth"


@pytest.mark.parametrize("without_numpy", [False, True])
def test_network_weights_and_inference_form(without_numpy, weights):
    blocked = f"{OTHERS},numpy" if without_numpy else OTHERS
    if without_numpy:  # torch says so by itself
        code = "import warnings; warnings.simplefilter('ignore')\n" + BLOCK + USE
    else:
        code = BLOCK + USE
    assert run(code, blocked, weights, NANO) == ""


@pytest.mark.parametrize("name", ["HireMLP", "LayerDecayOptimWrapperConstructor"])
def test_what_needs_openmmlab_says_so(name):
    assert run(BLOCK + ASK.replace("NAME", name), OTHERS) == (
        f"hire_mlp_mm.{name} needs OpenMMLab, which is not installed: pip install "
        f"'hire_mlp_mm[lite]'; hire_mlp_mm.HireMLPNet needs torch alone\n"
    )


@pytest.mark.parametrize("broken", ["mmengine.registry", "mmengine.runner", "addict", "cv2"])
def test_a_broken_installation_is_not_called_a_missing_one(broken):
    """What fails is named; the network is there all the same."""
    code = BLOCK.replace('name.partition(".")[0]', "name") + ASK.replace("NAME", "HireMLP")
    said = run(code + "hire_mlp_mm.HireMLPNet", broken)
    assert len(said.splitlines()) == 1
    assert "which is installed but cannot be imported (ModuleNotFoundError: " in said
    assert f"No module named '{broken}'" in said
    assert "HireMLPNet needs torch alone" in said


def test_without_mmcv_a_backbone_cannot_be_built_and_says_why():
    code = BLOCK + (
        "import hire_mlp_mm\n"
        "from mmengine.registry import MODELS\n"
        "try:\n    MODELS.build(dict(type='HireMLP'))\n"
        "except ImportError as error:\n    print(error)\n"
        "hire_mlp_mm.HireMLPNet('tiny')\n"
    )
    said = run(code, "mmcv")
    assert "HireMLP takes its norms from mmcv, which cannot be imported" in said
    assert "pip install mmcv-lite" in said
    assert len(said.splitlines()) == 1


def test_every_public_name_is_there():
    import hire_mlp_mm

    for name in hire_mlp_mm.__all__:
        assert getattr(hire_mlp_mm, name) is not None, name
    assert set(hire_mlp_mm.__all__) <= set(dir(hire_mlp_mm))
    with pytest.raises(AttributeError, match="module 'hire_mlp_mm' has no attribute 'HireMPL'"):
        hire_mlp_mm.HireMPL  # noqa: B018
