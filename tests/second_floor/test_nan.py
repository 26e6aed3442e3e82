"""Does training stop on a loss that is not a number, before it spoils anything?"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from shapes import write_shapes
from torch import nn

from hire_mlp_mm.checkpoint import CheckpointError
from hire_mlp_mm.engine import harden
from hire_mlp_mm.engine.batches import BatchHook
from hire_mlp_mm.engine.checkpoints import load_checked
from hire_mlp_mm.engine.finite import FiniteCheckpointHook, FiniteHook
from hire_mlp_mm.errors import UserError
from tests.conftest import ROOT, free_port

CONFIGS = {
    "detector": "configs/cascade_mask_rcnn_hire_nano_shapes.py",
    "segmentor": "configs/upernet_hire_nano_shapes.py",
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=4, val=1)
    return folder


class Poison(Hook):
    """Spoils one thing before one iteration, and remembers the weights of then."""

    def __init__(self, iteration: int, what: str) -> None:
        self.iteration, self.what = iteration, what

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter + 1 != self.iteration:
            return
        self.model = runner.model
        self.before = [p.detach().clone() for p in runner.model.parameters()]
        self.images = [sample.img_path for sample in data_batch["data_samples"]]
        if self.what == "image":
            data_batch["inputs"][0] = data_batch["inputs"][0] * float("nan")
        elif self.what == "gradient":
            weight = next(runner.model.backbone.parameters())
            weight.register_hook(lambda gradient: gradient * float("inf"))
        elif self.what == "step":  # the gradient is fine and what it does to the weights is not
            runner.optim_wrapper.optimizer.register_step_post_hook(self.spoil)

    @staticmethod
    def spoil(optimizer, *_) -> None:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].view(-1)[0] = float("inf")


def train(model: str, shapes: Path, work_dir: Path, poison: Poison) -> Runner:
    """Train for 4 iterations with a checkpoint after each, by anybody's runner."""
    cfg = Config.fromfile(ROOT / CONFIGS[model])
    cfg.train_dataloader.update(batch_size=2)
    cfg.train_dataloader.dataset.data_root = str(shapes)
    cfg.merge_from_dict(
        dict(
            work_dir=str(work_dir),
            experiment_name=work_dir.name,
            train_cfg=dict(max_iters=4, val_interval=100),
            default_hooks=dict(checkpoint=dict(interval=1, max_keep_ckpts=-1)),
        )
    )
    for key in ("dataloader", "cfg", "evaluator"):
        cfg[f"val_{key}"] = cfg[f"test_{key}"] = None
    runner = Runner.from_cfg(harden(cfg))
    runner.register_hook(poison)
    runner.train()
    return runner


def saved(work_dir: Path) -> list[str]:
    """Names of the checkpoints; they hold numbers."""
    names = sorted(path.name for path in work_dir.glob("*.pth"))
    for name in names:
        state = torch.load(work_dir / name, weights_only=False)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())
    return names


@pytest.mark.parametrize("model", CONFIGS)
def test_an_image_that_makes_the_loss_nan(guarded, model, shapes, tmp_path):
    poison = Poison(3, "image")
    with pytest.raises(UserError) as raised:
        train(model, shapes, tmp_path, poison)
    line = str(raised.value)
    assert line.startswith("iteration 3: the loss is nan, with the images ")
    assert len(poison.images) == 2
    for image in poison.images:
        assert image in line
    assert f"the last checkpoint is {tmp_path / 'iter_2.pth'}" in line
    assert saved(tmp_path) == ["iter_1.pth", "iter_2.pth"]
    for now, then in zip(poison.model.parameters(), poison.before, strict=True):
        assert torch.equal(now, then)  # no step was taken


def test_a_gradient_that_is_infinite(guarded, shapes, tmp_path):
    """The loss is fine; the weights would not be."""
    with pytest.raises(UserError, match=r"iteration 1: a gradient is NaN or Inf \(the loss is \d"):
        train("segmentor", shapes, tmp_path, Poison(1, "gradient"))
    assert saved(tmp_path) == []


def test_weights_that_are_not_numbers_are_not_saved(guarded, shapes, tmp_path):
    with pytest.raises(UserError, match=r"iteration 2: \S+ is NaN or Inf, and was not saved; the"):
        train("segmentor", shapes, tmp_path, Poison(2, "step"))
    assert saved(tmp_path) == ["iter_1.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "iter_1.pth")


def test_constant_masks_are_saved_and_loaded():
    """Of infinity or bool, as models have them among their buffers; a changed one is damage."""
    model = torch.nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    model.register_buffer("used", torch.tensor([True, False]))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    runner = FakeRunner(model, None)
    FiniteCheckpointHook().before_save_checkpoint(runner, dict(state_dict=state))
    load_checked(state, model, "file")
    for name in ("mask", "weight"):
        with pytest.raises(CheckpointError, match=f"file: {name} holds NaN or Inf"):
            load_checked({**state, name: state[name] + float("inf")}, model, "file")


class FakeRunner:
    """What of a runner the check looks at."""

    iter = 6
    work_dir = "nowhere"

    def __init__(self, model, optim_wrapper) -> None:
        self.model, self.optim_wrapper = model, optim_wrapper


class Loss(BaseModel):
    """A model whose loss is its weight times what it is given, and a number more."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, factor=1.0, more=0.0, mode="tensor"):
        return dict(loss=(self.weight * factor).sum() + more)


def step(runner, hook, *images, **data) -> None:
    """One iteration as a loop of mmengine's makes it."""
    infos = [dict(img_path=image, img_shape=(48, 64)) for image in images or ["image.jpg"]]
    samples = [BaseDataElement(metainfo=info) for info in infos]
    hook.before_train_iter(runner, 0, dict(data_samples=samples))
    runner.model.train_step(data, runner.optim_wrapper)
    hook.after_train_iter(runner, 0)


class Scaled(AmpOptimWrapper):
    def __init__(self, optimizer, **options) -> None:  # the real one wants a GPU
        OptimWrapper.__init__(self, optimizer, **options)
        self.loss_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        self._scale_update_param, self.cast_dtype = None, torch.bfloat16


def prepared(model, wrapper=OptimWrapper, **options):
    """A runner with a model, and the hook that watches it."""
    MessageHub.get_current_instance()
    inner = getattr(model, "module", model)
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    runner, hook = FakeRunner(model, wrapper(optimizer, **options)), FiniteHook()
    hook.before_train(runner)
    return runner, hook


def test_under_a_gradient_scaler_the_loss_alone_counts():
    """It skips the step on an infinite gradient, and goes on with a smaller scale."""
    model = Loss()
    runner, hook = prepared(model, Scaled)
    step(runner, hook, factor=100)
    assert model.weight.grad is None or not model.weight.grad.isfinite().all()
    assert (model.weight == 1).all()
    assert runner.optim_wrapper.loss_scaler.get_scale() < 2.0**127
    with pytest.raises(UserError, match="the loss is nan"):
        step(runner, hook, factor=float("nan"))
    assert (model.weight == 1).all()


def test_the_loss_is_looked_at_before_an_iteration_leaves_a_trace(shapes, tmp_path):
    """Where no step of the optimizer is looked at, as under a gradient scaler."""
    cfg = Config.fromfile(ROOT / CONFIGS["segmentor"])
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), experiment_name=tmp_path.name))
    cfg.custom_hooks = [dict(type="EMAHook")]
    order = [type(hook).__name__ for hook in Runner.from_cfg(harden(cfg)).hooks]
    for later in ("LoggerHook", "ParamSchedulerHook", "EMAHook", "CheckpointHook"):
        assert order.index("FiniteHook") < order.index(later)
    assert order.index("CheckpointHook") < order.index("FiniteCheckpointHook")


def test_an_infinite_loss_whose_gradients_are_fine():
    model = Loss()
    runner, hook = prepared(model)
    step(runner, hook)
    before = model.weight.detach().clone()
    assert not torch.equal(before, torch.ones(2))
    with pytest.raises(UserError, match=r"the loss is inf, with the images image\.jpg"):
        step(runner, hook, more=float("inf"))
    assert torch.equal(model.weight, before)


def test_accumulated_gradients_are_looked_at_before_their_step():
    """Of the iteration whose loss is NaN, though the step comes later."""
    model = Loss()
    runner, hook = prepared(model, accumulative_counts=3)
    runner.optim_wrapper.initialize_count_status(model, 0, 9)
    step(runner, hook)
    with pytest.raises(UserError, match=r"the loss is nan, with the images bad\.jpg"):
        step(runner, hook, "bad.jpg", factor=float("nan"))
    assert (model.weight == 1).all()


def test_a_large_batch_is_named_by_its_first_images():
    runner, hook = prepared(Loss())
    with pytest.raises(UserError, match=r"images 0\.jpg \(64 x 48\), 1\.jpg .* and 6 more and the"):
        step(runner, hook, *(f"{i}.jpg" for i in range(8)), more=float("inf"))


def test_losses_in_lists_may_be_empty():
    """As a detector's without a level."""
    hook, model = FiniteHook(), nn.Identity()
    hook.remember(model, None, dict(loss_a=[], loss_b=[torch.ones(2), torch.ones(())], acc=9))
    assert hook.loss == 2


def test_a_copy_of_the_model_does_not_copy_the_run():
    """As an average makes one; the hooks that look at the model are bound to a runner."""
    model = Loss()
    runner, hook = prepared(model)
    watch = BatchHook()
    watch.before_run(runner)
    twin = copy.deepcopy(model)
    assert twin.weight is not model.weight
    owners = [one.__self__ for one in twin._forward_hooks.values()]
    assert owners == [hook, watch]
    assert watch.runner is runner


def one_process(rank: int) -> None:
    """Of two: the loss of the second is NaN, and both must say so."""
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = Loss()
    parallel = MMDistributedDataParallel(model)
    runner, hook = prepared(parallel)
    image = f"image{rank}.jpg"
    # Without a gradient to say so: the processes must ask each other.
    step(runner, hook, image)
    before = model.weight.detach().clone()
    try:
        step(runner, hook, image, more=float("nan") if rank else 0.0)
    except UserError as error:
        same = torch.equal(before, model.weight)
        sys.stdout.write(f"rank {rank}: {error}; same weights: {same}\n")
    torch.distributed.barrier()
    os._exit(0)


def test_all_processes_stop():
    port = free_port()
    code = (
        "import sys, tests.conftest\n"
        "from tests.second_floor.test_nan import one_process\n"
        "one_process(int(sys.argv[1]))"
    )
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONUNBUFFERED": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank, process in enumerate(processes):
        out, err = process.communicate(timeout=200)
        expected = f"rank {rank}: iteration 7: the loss is nan, with the images image1.jpg ("
        assert expected in out, err[-2000:]
        assert "same weights: True" in out


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mixed", [[], ["--amp"]], ids=["float32", "bfloat16"])
def test_the_tool_says_it(mixed, shapes, tmp_path, fork_tool):
    settings = ["optim_wrapper.optimizer.lr=1e30", "param_scheduler=None"]
    settings += ["train_dataloader.batch_size=2", "default_hooks.checkpoint.interval=1"]
    command = ["tools/train.py", CONFIGS["segmentor"], "--work-dir", tmp_path, *mixed]
    env = {"SHAPES_ROOT": str(shapes)}
    done = fork_tool(*command, "--cfg-options", *settings, env=env)
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("train.py: error: iteration 2: the loss is nan, with the images /")
    assert "the learning rate 1e+30" in last
    assert saved(tmp_path) == ["iter_1.pth"]
