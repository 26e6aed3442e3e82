"""Are the hosts' faults still there? A test that fails here says that a patch can go."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import BatchSampler, DataLoader

from hire_mlp_mm import fsdp, host_faults
from tests.conftest import ROOT

BY_NAME = "hire_mlp_mm::upernet_hire_s_ade20k.py"


def test_recipes_by_name_need_us(run_tool):
    """mmengine by itself, the package installed but not imported."""
    code = (
        "import sys\n"
        "from mmengine.config import Config\n"
        "from mmengine.hub import get_config\n"
        "import tempfile\n"
        "with tempfile.NamedTemporaryFile('w', suffix='.py') as file:\n"
        "    print('_base_ = ' + repr(sys.argv[1]), file=file, flush=True)\n"
        "    for load in (lambda: Config.fromfile(file.name), lambda: get_config(sys.argv[1])):\n"
        "        try:\n"
        "            cfg = load()\n"
        "            print('found', cfg.model.get('_scope_'))\n"
        "        except Exception as error:\n"
        "            print(type(error).__name__)\n"
    )
    done = run_tool("-W", "ignore", "-c", code, BY_NAME)
    assert done.returncode == 0, done.stderr
    assert "found None" not in done.stdout


def test_recipes_by_name(tmp_path):
    host_faults.mend()  # once more, which changes nothing
    (tmp_path / "mine.py").write_text(f"_base_ = {BY_NAME!r}\n")
    expected = Config.fromfile(ROOT / "configs" / BY_NAME.partition("::")[2]).to_dict()
    assert Config.fromfile(tmp_path / "mine.py").to_dict() == expected
    assert get_config(BY_NAME).to_dict() == expected
    with pytest.raises(AssertionError, match="does not support to load nobody config"):
        get_config("nobody::folder/recipe.py")


BY_INFERENCER = (
    "import sys, warnings\n"
    "warnings.simplefilter('ignore')\n"
    "import hire_mlp_mm\n"
    "from mmengine.registry import init_default_scope\n"
    "from mmengine.infer import BaseInferencer\n"
    "if sys.argv[1] == 'unmended':\n"
    "    from hire_mlp_mm import host_faults\n"
    "    BaseInferencer._get_models_from_metafile = staticmethod(host_faults.models_by_mmengine)\n"
    "from mmdet.apis import DetInferencer\n"
    "from mmseg.apis import MMSegInferencer\n"
    "for kind, name in ((DetInferencer, 'retinanet_hire_t_1x_coco'),\n"
    "                   (MMSegInferencer, 'semantic_fpn_hire_t_ade20k'),\n"
    "                   (MMSegInferencer, 'retinanet_hire_t_1x_coco')):\n"
    "    try:\n"
    "        print(type(kind(model=name, device='cpu').model).__name__)\n"
    "    except ValueError as error:\n"
    "        print(error)\n"
)


def test_inferencers_find_our_recipes_by_name(run_tool):
    done = run_tool("-c", BY_INFERENCER, "mended")
    assert done.returncode == 0, done.stderr
    outcomes = [
        *("RetinaNet", "EncoderDecoder"),
        "Cannot find model: retinanet_hire_t_1x_coco in mmseg",
    ]
    # Beside what the hosts say about themselves.
    assert [line for line in done.stdout.splitlines() if line in outcomes] == outcomes


def test_inferencers_need_us_to_find_our_recipes(run_tool):
    """Mended, when mmengine's inferencers look into other packages than the host's."""
    done = run_tool("-c", BY_INFERENCER, "unmended")
    assert done.stdout.count("Cannot find model") == 3, done.stdout + done.stderr


@pytest.mark.parametrize("first", ["hire_mlp_mm", "mmpretrain"])
def test_mmpretrain_knows_our_classifiers(first, run_tool):
    """Whichever package is imported first, and without mmpretrain until it is asked for."""
    from tests.conftest import WITHOUT_OPS

    code = (
        f"{WITHOUT_OPS}\n"
        f"import {first}\n"
        "import sys\n"
        "import hire_mlp_mm\n"
        f"assert ('mmpretrain' in sys.modules) == ({first!r} == 'mmpretrain')\n"
        "import mmpretrain\n"
        "print(*mmpretrain.list_models('*hire*'))\n"
        "print(type(mmpretrain.get_model('hire_t_imagenet').backbone).__name__)\n"
    )
    done = run_tool("-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr
    names = " ".join(f"hire_{arch}_imagenet" for arch in "blst")
    assert done.stdout.splitlines()[0] == names
    assert done.stdout.splitlines()[-1] == "HireMLP"


class Recorder:
    """Stands for FSDPStrategy: what its methods are given."""

    def __init__(self) -> None:
        self.wrapped = []

    def convert_model(self, model: nn.Module) -> str:
        return "converted"

    def _wrap_model(self, model: object) -> object:
        self.wrapped.append(model)
        return model


class Mended(host_faults.FSDPStrategyFaults, Recorder):
    pass


def test_fsdp_passes_over_sync_bn():
    """Mended, when mmengine's FSDPStrategy calls convert_model by itself."""
    assert "convert_model" not in inspect.getsource(fsdp.HostStrategy)
    strategy = Mended()
    assert strategy._wrap_model(nn.ReLU()) == "converted"
    assert strategy.wrapped == ["converted"]


def test_fsdp_gives_the_optimizers_state_where_torch_wants_the_model():
    """Mended, when mmengine's FSDPStrategy names the arguments, or gives the model first."""
    assert (
        next(iter(inspect.signature(FullyShardedDataParallel.optim_state_dict_to_load).parameters))
        == "model"
    )
    source = "".join(inspect.getsource(fsdp.HostStrategy.load_optim_state_dict).split())
    assert "optim_state_dict_to_load(state_dict,self.model" in source


class Writer:
    """A strategy that is killed while it writes."""

    state_dict_type = SimpleNamespace(name="FULL_STATE_DICT")
    killed = False

    def save_checkpoint(self, filename: str) -> None:
        Path(filename).write_text("half" if self.killed else "whole")
        if self.killed:
            raise KeyboardInterrupt


class WholeWriter(host_faults.FSDPStrategyFaults, Writer):
    pass


def test_fsdp_writes_checkpoints_in_place(tmp_path):
    """Mended, when mmengine's strategies take the hook's `backend_args`."""
    assert "backend_args" not in inspect.signature(fsdp.HostStrategy.save_checkpoint).parameters
    path = tmp_path / "iter_1.pth"
    strategy = WholeWriter()
    strategy.save_checkpoint(str(path))
    assert path.read_text() == "whole"
    strategy.killed = True
    with pytest.raises(KeyboardInterrupt):
        strategy.save_checkpoint(str(path))
    assert path.read_text() == "whole"
    strategy.killed, strategy.state_dict_type = False, SimpleNamespace(name="LOCAL_STATE_DICT")
    strategy.save_checkpoint(str(tmp_path / "folder"))  # of files of each process, as it is
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "folder",
        "iter_1.pth",
        "iter_1.pth.part",
    ]


def test_the_strategy_has_all():
    mended, host = fsdp.FSDPStrategy.__bases__
    assert (mended, host) == (host_faults.FSDPStrategyFaults, fsdp.HostStrategy)


def test_a_loader_with_a_batch_sampler_has_no_batch_size():
    """Mended, when MMPretrain's hook asks the batch sampler, or torch's loader does."""
    from mmpretrain.engine.hooks import PreciseBNHook, precise_bn_hook

    assert "loader.batch_size" in inspect.getsource(precise_bn_hook)
    assert PreciseBNHook is precise_bn_hook.PreciseBNHook
    batches = BatchSampler(range(10), 4, drop_last=False)
    loader = DataLoader(range(10), batch_sampler=batches)
    assert loader.batch_size is None
    with pytest.raises(ValueError, match="batch_size attribute should not be set"):
        loader.batch_size = 4
    host_faults.tell_batch_size(loader, 4)
    assert loader.batch_size == 4
    assert [len(batch) for batch in loader] == [4, 4, 2]


def test_resize_advises_on_sizes(recwarn):
    """Mended, when MMSegmentation's heads don't ask for advice, or it takes no ints for it."""
    from mmseg.models.utils import resize

    x = torch.rand(1, 1, 4, 4)
    assert list(inspect.signature(resize).parameters)[-1] == "warning"
    resize(x, (6, 6), mode="bilinear", align_corners=True)
    assert len([one for one in recwarn if "align_corners" in str(one.message)]) == 1
    with host_faults.quiet_resize():
        resize(x, (6, 6), mode="bilinear", align_corners=True)
    assert len([one for one in recwarn if "align_corners" in str(one.message)]) == 1
    assert resize.__defaults__[-1] is True
