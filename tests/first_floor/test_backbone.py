"""Does HireMLP behave as an OpenMMLab backbone?"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from itertools import combinations

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hire_mlp_mm import HireMLP, backbone
from tests.conftest import NANO, ROOT, WITHOUT_OPS

OUT_INDICES = [c for n in (1, 2, 3, 4) for c in combinations(range(4), n)]


@pytest.mark.parametrize("scope", ["mmdet", "mmseg", "mmpretrain", "mmengine"])
@pytest.mark.parametrize("name", ["HireMLP", "hire_mlp_mm.HireMLP"])
def test_builds_from_every_scope(scope, name):
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(dict(type=name, arch=NANO))
    assert type(model) is HireMLP
    assert isinstance(model, BaseModule)


@pytest.mark.parametrize(
    "made", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
@pytest.mark.parametrize("by_mmengine", [False, True])
def test_weights_that_somebody_loads_are_noticed(made, by_mmengine):
    """By torch's loader or mmengine's, into the backbone of a model, a copy included."""
    model = torch.nn.ModuleDict(dict(backbone=HireMLP(NANO), head=torch.nn.Linear(1, 1)))
    model.backbone.init_weights()
    model = made(model)
    load = load_state_dict if by_mmengine else torch.nn.Module.load_state_dict
    load(
        model, {k: v for k, v in model.state_dict().items() if k.startswith("head.")}, strict=False
    )
    assert model.backbone.starts_random
    load(model, model.state_dict())
    assert not model.backbone.starts_random


@pytest.mark.parametrize("scope", ["mmdet", "mmseg", "mmpretrain"])
def test_scoped_name_needs_no_import(scope):
    """As in a config that says type='hire_mlp_mm.HireMLP' and has no custom_imports."""
    code = (
        f"{WITHOUT_OPS}"
        "from mmengine.registry import DefaultScope\n"
        f"from {scope}.registry import MODELS\n"
        "assert 'hire_mlp_mm' not in sys.modules\n"
        f"with DefaultScope.overwrite_default_scope('{scope}'):\n"
        f"    model = MODELS.build(dict(type='hire_mlp_mm.HireMLP', arch={NANO!r}))\n"
        "print(type(model).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split()[-1:] == ["HireMLP"], done.stderr


@pytest.mark.parametrize("out_indices", OUT_INDICES)
def test_outputs(out_indices):
    model = HireMLP(NANO, out_indices=out_indices)
    outputs = model(torch.rand(2, 3, 64, 96))
    assert isinstance(outputs, tuple)
    shapes = [tuple(out.shape[1:]) for out in outputs]
    expected = zip(model.out_channels, model.strides, strict=True)
    assert shapes == [(channels, 64 // stride, 96 // stride) for channels, stride in expected]
    assert model.strides == tuple((4, 8, 16, 32)[i] for i in out_indices)
    norms = [name for name, _ in model.named_children() if name.startswith("norm")]
    assert norms == [f"norm{i}" for i in out_indices]
    assert len(model.stages) == out_indices[-1] + 1


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("with_cp", [False, True])
@pytest.mark.parametrize("output_norm", [False, True])
def test_every_trainable_parameter_gets_a_gradient(frozen_stages, with_cp, output_norm):
    """So DistributedDataParallel needs no find_unused_parameters."""
    arch = dict(depths=(2, 1, 1, 1), dims=(8, 8, 12, 12))
    options = dict(frozen_stages=frozen_stages, with_cp=with_cp, output_norm=output_norm)
    for out_indices in OUT_INDICES:
        model = HireMLP(arch, out_indices=out_indices, **options).train()
        loss = sum((out * torch.rand_like(out)).sum() for out in model(torch.rand(2, 3, 64, 64)))
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert bool(trainable) == (output_norm or frozen_stages <= out_indices[-1])
        if trainable:
            loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (out_indices, name)


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 2, 3, 4])
def test_frozen_stages(frozen_stages):
    model = HireMLP(NANO, frozen_stages=frozen_stages)
    parts = [model.stem, *model.stages]
    for mode in (None, True, False, True):
        if mode is not None:
            assert model.train(mode) is model
        for i, part in enumerate(parts):
            frozen = i <= frozen_stages
            assert all(p.requires_grad != frozen for p in part.parameters())
            training = model.training and not frozen
            assert all(m.training == training for m in part.modules())
        assert all(getattr(model, f"norm{i}").training == model.training for i in range(4))
        assert all(
            p.requires_grad for i in range(4) for p in getattr(model, f"norm{i}").parameters()
        )


def test_frozen_statistics_stay():
    model = HireMLP(NANO, frozen_stages=2).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.rand(2, 3, 64, 64))
    moved = {
        name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])
    }
    assert not any(name.startswith(("stem", "stages.0", "stages.1")) for name in moved)
    assert any(name.startswith("stages.2") for name in moved)


def test_norm_eval():
    model = HireMLP(NANO, norm_eval=True, drop_path_rate=0.5).train()
    for module in model.modules():
        assert module.training != isinstance(module, _BatchNorm)
    assert model.eval() is model
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("norm_cfg", "norm"),
    [
        (None, nn.BatchNorm2d),
        (dict(type="BN", eps=1e-3), nn.BatchNorm2d),
        (dict(type="SyncBN", requires_grad=True), nn.SyncBatchNorm),
        (dict(type="GN", num_groups=2), nn.GroupNorm),
        (dict(type="mmpretrain.LN2d", eps=1e-6), nn.LayerNorm),
    ],
)
def test_norm_cfg(norm_cfg, norm):
    model = HireMLP(NANO, norm_cfg=norm_cfg).train()
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)
    found = [m for m in model.modules() if isinstance(m, kinds)]
    assert found
    assert all(isinstance(m, norm) for m in found)
    if norm_cfg and "eps" in norm_cfg:
        assert {m.eps for m in found} == {norm_cfg["eps"]}
    sum(out.sum() for out in model(torch.rand(2, 3, 64, 64))).backward()


def test_norm_without_gradient():
    model = HireMLP(NANO, norm_cfg=dict(type="BN", requires_grad=False))
    assert not any(p.requires_grad for p in model.norm3.parameters())
    assert model.stages[0].blocks[0].mlp.fc1.weight.requires_grad


def test_output_norm_off():
    model = HireMLP(NANO, output_norm=False)
    assert not any(name.startswith("norm") for name in model.state_dict())


@pytest.mark.parametrize(
    "kwargs", [dict(frozen_stage=1), dict(drop_path=0.1), dict(pretrained="x.pth")]
)
def test_a_misspelt_argument_is_an_error(kwargs):
    with pytest.raises(TypeError, match=next(iter(kwargs))):
        HireMLP(NANO, **kwargs)


@pytest.mark.parametrize("frozen_stages", [-2, 5])
def test_frozen_stages_out_of_range(frozen_stages):
    with pytest.raises(ValueError, match="frozen_stages"):
        HireMLP(NANO, frozen_stages=frozen_stages)


def test_other_init_cfg_is_mmengines():
    init_cfg = dict(type="Constant", layer="Conv2d", val=0.5)
    model = HireMLP(NANO, init_cfg=init_cfg)
    model.init_weights()
    assert (model.stem.proj.weight == 0.5).all()


def test_more_image_channels():
    assert HireMLP(NANO, in_channels=5)(torch.rand(2, 5, 32, 32))[0].shape == (2, 8, 8, 8)


def test_copies_and_pickles():
    import copy
    import io

    model = HireMLP(NANO).eval()
    x = torch.rand(1, 3, 32, 32)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x)[3], model(x)[3])


@pytest.mark.parametrize(
    ("loaded", "said"),
    [
        (None, True),
        ("backbone", False),  # as `load_from` and `--resume` do
        ("neck", True),  # a checkpoint without the backbone
    ],
)
def test_random_weights_are_said_once_where_training_starts(loaded, said, monkeypatch):
    lines = []
    monkeypatch.setattr(backbone, "print_log", lambda message, **kwargs: lines.append(message))
    model = nn.ModuleDict(dict(backbone=HireMLP(NANO), neck=nn.Linear(2, 2)))
    model.backbone.init_weights()
    assert not lines  # mmengine's runner loads checkpoints after this
    if loaded:
        state = {k: v for k, v in model.state_dict().items() if k.startswith(loaded)}
        load_state_dict(model, state)
    model.train().eval()
    model.train()
    assert len(lines) == said
    assert all("starts from random weights" in line for line in lines)


def test_weights_of_init_cfg_are_not_random(tmp_path, monkeypatch):
    torch.save(HireMLP(NANO).state_dict(), tmp_path / "nano.pth")
    lines = []
    monkeypatch.setattr(backbone, "print_log", lambda message, **kwargs: lines.append(message))
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "nano.pth"))
    model = HireMLP(NANO, init_cfg=init_cfg)
    model.init_weights()
    model.train()
    assert ["loaded" in line for line in lines] == [True]


@pytest.mark.parametrize("loaded_by", ["nobody", "init_weights", "load_state_dict"])
def test_a_forward_before_the_weights_warns_once(loaded_by, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(HireMLP(NANO).state_dict(), path)
    model = HireMLP(NANO, init_cfg=dict(type="Pretrained", checkpoint=str(path))).eval()
    if loaded_by == "init_weights":
        model.init_weights()
    elif loaded_by == "load_state_dict":
        model.load_state_dict(torch.load(path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model(torch.rand(1, 3, 32, 32))
    said = [str(w.message) for w in caught if "init_cfg names a file" in str(w.message)]
    assert len(said) == (loaded_by == "nobody")
