"""Do several processes do what one does, and end together?

On the CPU, by gloo. Processes that need no tool of their own are forked from a server that has
imported what they need.
"""

from __future__ import annotations

import os
import pickle
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import chaos
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel, MMDistributedDataParallel, convert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from shapes import write_shapes
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hire_mlp_mm import HireMLP
from hire_mlp_mm.checkpoint import CheckpointError
from hire_mlp_mm.cli import leave_process_group
from hire_mlp_mm.engine.processes import join_processes_on_cpu
from hire_mlp_mm.engine.run import build_runner
from hire_mlp_mm.hire_mlp import Block
from tests.around.test_configs import build, load, training_data
from tests.conftest import ROOT, free_port
from tests.first_floor.test_backbone import OUT_INDICES
from tests.roof.test_tools import DETECTION, SEGMENTATION, metrics, options
from tests.second_floor import test_resume
from tests.second_floor.test_resume import LOOPS, CrashError, CrashHook

FSDP = "configs/upernet_hire_l_ade20k_fsdp.py"


@pytest.fixture(scope="module", autouse=True)
def shapes(tmp_path_factory):
    """A small data set in the environment; no number of processes divides its 5 test images."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=8, val=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAPES_ROOT", str(folder))
        yield


def in_processes(number: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(*args)` returns in each of several processes, by rank.

    They find each other as if torchrun had started them. An error in one ends them all.
    """
    chaos.preloaded()
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(
            os.environ, WORLD_SIZE=str(number), MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port()
        )
        torch.multiprocessing.start_processes(
            in_process,
            (environment, folder, function, *args),
            nprocs=number,
            start_method="forkserver",
        )
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(number)]


def in_process(rank: int, environment: dict[str, str], folder: str, function, *args) -> None:
    chaos.settle({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    os.chdir(folder)  # mmengine hands results over in files
    torch.manual_seed(0)
    Path(folder, str(rank)).write_bytes(pickle.dumps(function(*args)))
    leave_process_group()


# Gradients --------------------------------------------------------------------------------------


def statistics_of_all(norm: nn.SyncBatchNorm, x: Tensor) -> Tensor:
    """What torch's SyncBatchNorm computes, for which it wants a GPU."""
    if not norm.training:
        statistics = (norm.running_mean, norm.running_var)
        return F.batch_norm(x, *statistics, norm.weight, norm.bias, False, 0.0, norm.eps)
    count = all_reduce(x.new_tensor(x.numel() / x.shape[1]))
    mean = all_reduce(x.sum((0, 2, 3))) / count
    x = x - mean[:, None, None]
    variance = all_reduce(x.square().sum((0, 2, 3))) / count
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return x * scale[:, None, None] + norm.bias[:, None, None]


def step_of_a_segmentor(device: str, frozen_statistics: bool, with_cp: bool) -> dict[str, Tensor]:
    """Loss, gradients and running statistics after two images here, or all four if alone."""
    rank, number = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.manual_seed(0)
    cfg = load(Path(SEGMENTATION).stem)
    cfg.model.backbone.with_cp = with_cp
    cfg.model.data_preprocessor.size = (64, 64)
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.dropout_ratio = 0
    model = build(cfg).double().train()
    shards = [training_data(cfg, 64) for _ in range(2)]
    if number > 1:
        shards = shards[rank : rank + 1]
        model = model if frozen_statistics else convert_sync_batchnorm(model)
        if not frozen_statistics:
            assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    if frozen_statistics:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    model.to(device)
    batch = {key: [one for shard in shards for one in shard[key]] for key in shards[0]}
    batch = model.data_preprocessor(batch, training=True)
    wrapped = model
    if number > 1:
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    losses = wrapped(batch["inputs"].double(), batch["data_samples"], mode="loss")
    loss = model.parse_losses(losses)[0]
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    found |= {name: buffer for name, buffer in model.named_buffers() if "running" in name}
    return {name: tensor.cpu() for name, tensor in found.items()} | {"loss": loss.detach().cpu()}


CASES = [(False, False), (False, True), (True, False)]  # frozen statistics, with_cp


def steps_of_a_segmentor(device: str) -> list[dict[str, Tensor]]:
    # Two processes may share a GPU under gloo.
    dist.init_process_group("gloo")
    if device == "cpu":
        norm = nn.SyncBatchNorm(2)
        with pytest.raises(ValueError, match="expected input tensor to be on GPU"):
            norm(torch.rand(2, 2, 2, 2))
        nn.SyncBatchNorm.forward = statistics_of_all
        MMDistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None  # refuses, too
    return [step_of_a_segmentor(device, *case) for case in CASES]


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ],
)
def test_two_processes_give_the_gradients_of_the_doubled_batch(device):
    """In double precision, so that nothing but the order of sums may differ.

    On the CPU with a SyncBatchNorm of ours in torch's place, and with torch's own on a GPU.
    """
    first, second = in_processes(2, steps_of_a_segmentor, device)
    for case, one, other in zip(CASES, first, second, strict=True):
        alone = step_of_a_segmentor(device, *case)
        assert set(one) == set(other) == set(alone)
        for name, expected in alone.items():
            close = dict(rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
            found = (one[name] + other[name]) / 2 if name == "loss" else one[name]
            torch.testing.assert_close(found, expected, **close)
            if name != "loss":
                torch.testing.assert_close(other[name], expected, **close)


def train_backbones() -> None:
    """Two steps each: DDP complains in the second of what got no gradient in the first."""
    dist.init_process_group("gloo")
    arch = dict(depths=(1, 1, 1, 1), dims=(8, 8, 12, 12))
    every_seventh = list(product(range(-1, 5), OUT_INDICES, (False, True), (False, True)))[::7]
    for frozen_stages, out_indices, output_norm, with_cp in every_seventh:
        model = HireMLP(
            arch, out_indices=out_indices, output_norm=output_norm, frozen_stages=frozen_stages,
            with_cp=with_cp,
        ).train()  # fmt: skip
        if not any(parameter.requires_grad for parameter in model.parameters()):
            continue
        model = MMDistributedDataParallel(model, broadcast_buffers=False)
        for _ in range(2):
            outputs = model(torch.rand(1, 3, 64, 64))
            sum((out * torch.rand_like(out)).sum() for out in outputs).backward()


def test_no_parameter_is_unused():
    """Under DistributedDataParallel; that all get a gradient, test_backbone.py tests."""
    in_processes(2, train_backbones)


# Evaluation -------------------------------------------------------------------------------------


@MODELS.register_module()
class Oracle(BaseModel):
    """A detector that knows the truth, and moves it a little, by an image's number."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(()))  # DDP takes no model without

    def forward(self, inputs, data_samples, mode):
        for sample in data_samples:
            truth = sample.gt_instances
            random = torch.Generator().manual_seed(sample.img_id)
            number = len(truth)
            moved = truth.bboxes.tensor + 5 * torch.randn(number, 4, generator=random)
            masks = torch.from_numpy(truth.masks.masks).bool()
            sample.pred_instances = InstanceData(
                bboxes=moved,
                masks=masks.roll(int(torch.randint(6, (), generator=random)), 2),
                labels=truth.labels,
                scores=torch.rand(number, generator=random),
            )
        return data_samples


def evaluate(config: str, work_dir: str) -> tuple[dict[str, float], Any]:
    """The figures of a test run, and per image what they are made of."""
    cfg = Config.fromfile(ROOT / config)
    cfg.launcher = "pytorch" if int(os.environ["WORLD_SIZE"]) > 1 else "none"
    cfg.work_dir = work_dir
    cfg.test_dataloader.batch_size = 1
    if config == DETECTION:
        cfg.model = dict(type="Oracle")
    runner = build_runner(cfg)
    (metric,) = runner.test_evaluator.metrics
    compute, collected = metric.compute_metrics, []

    def compute_metrics(results):
        collected.extend(results)
        return compute(results)

    metric.compute_metrics = compute_metrics
    figures = runner.test()
    if config == DETECTION:
        return figures, [truth["img_id"] for truth, _ in collected]
    return figures, [[area.tolist() for area in areas] for areas in collected]


def evaluate_both(folder: str) -> list[tuple[dict[str, float], Any]]:
    return [evaluate(config, folder) for config in (DETECTION, SEGMENTATION)]


def test_evaluation_has_the_figures_of_one_process(tmp_path):
    """5 images in 2 processes: mmengine repeats one, and drops it before it counts."""
    (alone,) = in_processes(1, evaluate_both, str(tmp_path))
    (detection, images), (segmentation, areas) = alone
    assert images == list(range(5))
    assert len(areas) == 5
    assert 0.1 < detection["coco/bbox_mAP"] < 0.9
    assert 0.1 < detection["coco/segm_mAP"] < 0.9
    assert 1 < segmentation["mIoU"] < 99
    first, second = in_processes(2, evaluate_both, str(tmp_path))
    assert first == alone
    assert [figures for figures, _ in second] == [detection, segmentation]


# Sharded weights --------------------------------------------------------------------------------


def train(
    work_dir: str, sharded: bool, iterations: int, resume: bool = False, start: str = "start.pth"
) -> list[int]:
    """Train the small segmentor as the tool does.

    Sharded by the strategy of the config that shows it, but for what goes by GPU: torch's FSDP
    takes no CPU unasked, and where it would copy a whole state from the GPU to the CPU, it gives
    views of freed memory if that state is on the CPU already.

    Returns:
        The number of parameters of each FSDP unit that this process holds.
    """
    cfg = Config.fromfile(ROOT / SEGMENTATION)
    cfg.launcher, cfg.work_dir = "pytorch", work_dir
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=-1)
    if not resume:
        cfg.load_from = str(Path(work_dir).parent / start)
    cfg.train_dataloader.batch_size = 2
    if sharded:
        example = Config.fromfile(ROOT / FSDP)
        cfg.runner_type, cfg.strategy = example.runner_type, example.strategy
        cfg.strategy.sync_bn = None
        cfg.strategy.model_wrapper.device_id = "cpu"
        cfg.strategy.state_dict_cfg = dict(
            state_dict_type="FULL_STATE_DICT",
            state_dict_config=dict(type="FullStateDictConfig", offload_to_cpu=False),
            optim_state_dict_config=dict(type="FullOptimStateDictConfig", offload_to_cpu=False),
        )
    cfg.resume = resume
    runner = build_runner(cfg)
    runner.train()
    units = FullyShardedDataParallel.fsdp_modules(runner.model)
    assert all(isinstance(unit.module, Block) for unit in units if unit is not runner.model)
    return [unit._flat_param.numel() for unit in units]


def train_in_three_ways(folder: str) -> list[int]:
    train(f"{folder}/plain", False, 2)
    train(f"{folder}/sharded", True, 1)
    with pytest.raises(CheckpointError, match="lacks stages"):
        train(f"{folder}/refused", True, 1, start="other.pth")
    return train(f"{folder}/sharded", True, 2, resume=True)


def run_test(folder: str) -> None:
    """tools/test.py with the config of a sharded training; it needs no second process."""
    strategy = f"strategy=dict(type='{Config.fromfile(ROOT / FSDP).strategy.type}')"
    config = Path(folder, "sharded.py")
    config.write_text(f"_base_='{ROOT}/{SEGMENTATION}'\nrunner_type='FlexibleRunner'\n{strategy}\n")
    checkpoint, work_dir = f"{folder}/sharded/iter_2.pth", f"{folder}/test"
    sys.argv = ["tools/test.py", str(config), checkpoint, "--work-dir", work_dir]
    runpy.run_path(str(ROOT / "tools/test.py"), run_name="__main__")


def test_a_sharded_step_is_the_plain_one(tmp_path):
    """Two processes with FSDP or DDP: the same weights, also after resuming the former."""
    example = Config.fromfile(ROOT / FSDP)
    assert example.model == Config.fromfile(ROOT / FSDP.replace("_fsdp", "")).model
    assert example.strategy.sync_bn == example.sync_bn
    start = build(load(Path(SEGMENTATION).stem)).state_dict()
    torch.save({"state_dict": start}, tmp_path / "start.pth")
    del start["backbone.stages.0.blocks.0.norm1.weight"]
    torch.save({"state_dict": start}, tmp_path / "other.pth")
    first, second = in_processes(2, train_in_three_ways, str(tmp_path))
    assert first == second
    plain, sharded = (
        [torch.load(tmp_path / way / f"iter_{i}.pth", weights_only=False) for i in (1, 2)]
        for way in ("plain", "sharded")
    )
    for one, other in zip(plain, sharded, strict=True):
        torch.testing.assert_close(other["state_dict"], one["state_dict"], rtol=0, atol=0)
    in_processes(1, run_test, str(tmp_path))
    assert "mIoU" in metrics(tmp_path / "test")
    # Half of the parameters, and of Adam's state, in each process; all blocks by themselves.
    state = plain[0]["optimizer"]["state"].values()
    held = [sum(units) for units in (first, second)]
    assert sum(held) == pytest.approx(sum(one["exp_avg"].numel() for one in state), rel=0.01)
    assert len(first) == 1 + sum(Config.fromfile(ROOT / SEGMENTATION).model.backbone.arch.depths)


# Killed and resumed -----------------------------------------------------------------------------


def train_and_go_on(folder: str) -> None:
    """Trainings that crash after any iteration, or before a validation, and go on."""
    import mmdet.datasets  # noqa: F401  its batch sampler

    cfg = Config()
    join_processes_on_cpu(cfg)
    settings = dict(launcher="pytorch", model_wrapper_cfg=cfg.model_wrapper_cfg)
    for loop in ("endless by shape", "epochs by shape", "within epochs"):
        settings["apart"] = loop == "epochs by shape"  # a seed for each process
        test_resume.train(f"{folder}/{loop}/whole", *LOOPS[loop], **settings)
        for place in ("iteration", "validation"):
            work_dir = f"{folder}/{loop}/{place}"
            crash = CrashHook(**{place: dict(iteration=5, validation=6)[place]})
            with pytest.raises(CrashError):
                test_resume.train(work_dir, *LOOPS[loop], crash, **settings)
            test_resume.train(work_dir, *LOOPS[loop], **settings)


def test_a_training_of_two_that_ended_goes_on_bit_for_bit(guarded, tmp_path):
    """Data of each process, statistics that no checkpoint holds: as in a run without a crash."""
    in_processes(2, train_and_go_on, str(tmp_path))
    for whole in tmp_path.glob("*/whole"):
        for one in whole.parent.glob("*[!e]"):
            where = chaos.difference(test_resume.result(whole), test_resume.result(one))
            assert where is None, one


# Two machines -----------------------------------------------------------------------------------


def train_on_two_machines(work_dir: Path, *args: str) -> list[subprocess.Popen]:
    """dist_train.sh twice, as on two machines with a process each; logs beside the work dir."""
    port = free_port()
    agents = []
    for node in range(2):
        env = dict(
            os.environ, PYTHON=sys.executable, PORT=port, NNODES="2", NODE_RANK=str(node),
            MASTER_ADDR="127.0.0.1",
        )  # fmt: skip
        command = ["bash", ROOT / "tools/dist_train.sh", ROOT / SEGMENTATION, "1"]
        command += ["--work-dir", work_dir, *args]
        with open(work_dir.parent / f"{node}.log", "w") as log:
            agents.append(
                subprocess.Popen(
                    command, cwd=work_dir.parent, env=env, stdout=log, stderr=subprocess.STDOUT
                )
            )
    return agents


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


on_linux = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds and ends processes as Linux does"
)


def state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds of a training."""
    loaded = torch.load(path, weights_only=False)
    return {key: loaded[key] for key in ("state_dict", "optimizer", "param_schedulers")}


@pytest.mark.slow
@pytest.mark.timeout(600)
@on_linux
def test_two_machines_train_end_together_and_resume(tmp_path):
    """dist_train.sh under two torchrun agents; a process of one is killed.

    Resumed two iterations before, they come to where the first two were, bit for bit.
    """
    work_dir, last = tmp_path / "train", tmp_path / "train/last_checkpoint"
    agents = train_on_two_machines(work_dir, *options(1000, 2))
    while not (work_dir / "iter_6.pth").exists() and all(agent.poll() is None for agent in agents):
        time.sleep(0.02)
    logs = [tmp_path / f"{node}.log" for node in range(2)]
    assert last.exists(), logs[0].read_text()[-2000:]
    workers = [pid for agent in agents for pid in children(agent.pid)]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    end = time.time() + 60
    assert [agent.wait(end - time.time()) for agent in agents] == [1, 1]
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert "Signal 9 (SIGKILL)" in logs[1].read_text()
    assert "train.py: error: another process of this run has ended" in logs[0].read_text()

    wanted = state(work_dir / "iter_4.pth")
    for path in work_dir.glob("*.pth"):
        if path.name != "iter_2.pth":
            path.unlink()
    agents = train_on_two_machines(work_dir, "--resume", *options(4, 1))
    assert [agent.wait() for agent in agents] == [0, 0], logs[0].read_text()[-2000:]
    assert "resumed epoch: 0, iter: 2" in logs[0].read_text()
    assert "mIoU: " in logs[0].read_text()
    assert chaos.difference(wanted, state(work_dir / "iter_4.pth")) is None


@on_linux
def test_a_process_ends_with_its_agent(tmp_path):
    """As one that is killed, and so the processes on other machines end, too."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, sys, time; from hire_mlp_mm.cli import run\n"
        "run(lambda: (print(os.getpid(), flush=True), time.sleep(60)), 'worker')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--master-port", free_port()]
    with subprocess.Popen([*command, str(worker)], stdout=subprocess.PIPE) as agent:
        process = Path("/proc", agent.stdout.readline().decode().strip())
        assert process.exists()
        agent.kill()
        end = time.time() + 10
        while process.exists():
            assert time.time() < end
            time.sleep(0.02)
