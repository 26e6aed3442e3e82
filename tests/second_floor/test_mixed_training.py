"""Does training in mixed precision work on a CPU, with its losses in float32?"""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from hire_mlp_mm.bench.wholes import batch_of, built, picture
from hire_mlp_mm.engine.forms import FormHook, mix_precision
from hire_mlp_mm.engine.options import scale_losses
from hire_mlp_mm.errors import UserError
from tests.second_floor.test_predict import MODELS_OF


def model_of(task: str):
    """A task's small model for training, its scope, and a batch to learn from."""
    cfg = Config.fromstring(MODELS_OF[task], ".py")
    image = picture(64, 96)
    model = built(cfg, image).train()
    model.init_weights()
    return model, cfg.default_scope, batch_of([image, image], cfg.default_scope, model)


def losses_of(model: nn.Module, scope: str, batch: dict) -> torch.Tensor:
    """Run a model on a batch as its host does; return the sum of its losses."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        data = model.data_preprocessor(batch, training=True)
        return model.parse_losses(model(**data, mode="loss"))[0]


def watch(model: nn.Module) -> dict[str, set[torch.dtype]]:
    """The types that convolutions give and that losses get, from now on."""
    seen: dict[str, set[torch.dtype]] = dict(convolutions=set(), losses=set())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: seen["convolutions"].add(out.dtype))
        if name.rpartition(".")[2].startswith("loss"):
            module.register_forward_pre_hook(
                lambda _, inputs: seen["losses"].update(
                    one.dtype for one in inputs if getattr(one, "is_floating_point", bool)()
                )
            )
    return seen


@pytest.mark.parametrize("task", MODELS_OF)
def test_layers_compute_in_bfloat16_and_losses_in_float32(task):
    model, scope, batch = model_of(task)
    plain = losses_of(model, scope, batch)
    mix_precision(model, torch.bfloat16, training=True)
    seen = watch(model)
    loss = losses_of(model, scope, batch)
    assert seen == dict(convolutions={torch.bfloat16}, losses={torch.float32})
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(plain), rel=0.02)
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters())


@pytest.mark.parametrize("task", MODELS_OF)
def test_a_validation_within_a_training_stays_in_float32(task):
    model, scope, batch = model_of(task)
    mix_precision(model, torch.bfloat16, training=True)
    seen = watch(model)
    with torch.no_grad(), DefaultScope.overwrite_default_scope(scope):
        model.eval().val_step(batch)
    assert seen["convolutions"] == {torch.float32}


@pytest.mark.parametrize(
    ("known", "warns"),
    [
        (dict(avx2=True, avx512_bf16=False), True),
        (dict(avx512_bf16=True), False),
        (dict(neon=True, bf16=True), False),
        (None, False),  # of a torch that does not tell
    ],
)
def test_a_cpu_that_is_slow_in_bfloat16_is_said(known, warns, monkeypatch, caplog):
    if known is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    runner = SimpleNamespace(model=nn.Linear(1, 1), logger=logging.getLogger("said"))
    with caplog.at_level(logging.INFO):
        FormHook(training=True, dtype="auto").before_train(runner)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "mixed precision: float32 and torch.bfloat16"
    assert [line for line in lines if "without --amp it is faster" in line] == lines[1 : 1 + warns]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_what_scales_losses_is_for_float16():
    """A config's own scaler, which refuses CPUs, leaves with what it alone takes."""
    given = dict(type="AmpOptimWrapper", loss_scale=512.0, dtype="float16", clip_grad=dict())
    for dtype in ("auto", "bfloat16"):
        cfg = Config(dict(optim_wrapper=given))
        scale_losses(cfg, dtype)
        assert cfg.optim_wrapper == dict(type="OptimWrapper", clip_grad=dict())
    own = Config(dict(optim_wrapper=dict(type="Mine")))
    scale_losses(own, "auto")
    assert own.optim_wrapper.type == "Mine"
    with pytest.raises(UserError, match="float16 on a CPU: expected bfloat16"):
        scale_losses(own, "float16")


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_on_a_gpu_float16_is_scaled(dtype, monkeypatch):
    monkeypatch.setattr("hire_mlp_mm.engine.options.get_device", lambda: "cuda")
    cfg = Config(dict(optim_wrapper=dict(type="OptimWrapper")))
    scale_losses(cfg, dtype)
    wanted = dict(type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic")
    assert cfg.optim_wrapper == wanted
