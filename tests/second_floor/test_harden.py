"""Is a hardened config the same run, with every guarantee, and nothing else?"""

from __future__ import annotations

import copy
import pickle
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.datasets import CocoDataset, LVISV1Dataset, Objects365V1Dataset
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook
from mmengine.registry import DATASETS, HOOKS, DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader, get_worker_info

from hire_mlp_mm.engine import harden, options
from hire_mlp_mm.engine.checkpoints import CheckpointHook as OurCheckpointHook
from hire_mlp_mm.engine.config import find_config
from hire_mlp_mm.engine.guarded import Guarded, GuardedCoco, guard_dataset
from hire_mlp_mm.engine.randomness import Batch, PlacedBatchSampler
from hire_mlp_mm.files import WHOLE
from tests.conftest import ROOT

# One of each method: the other sizes are children of a few lines.
RECIPES = sorted(
    path.name for path in (ROOT / "configs").glob("*.py") if re.search("_(s|nano)_|fsdp", path.name)
)
# Data sets within others, several of them, samplers and hooks of the hosts' own.
HOSTS = [
    "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "mmdet::yolox/yolox_s_8xb8-300e_coco.py",
    "mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py",
    "mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py",
    "mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py",
    "mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py",
    "mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py",
    "mmpretrain::resnet/resnet50_8xb32_in1k.py",
    "mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py",
]


def read(name: str) -> Config:
    return Config.fromfile(find_config(f"hire_mlp_mm::{name}" if name in RECIPES else name))


@pytest.mark.parametrize("name", RECIPES + HOSTS)
def test_pure_idempotent_and_written_down(name, tmp_path):
    cfg = read(name)
    before = copy.deepcopy(cfg.to_dict())
    hard = harden(cfg)
    assert cfg.to_dict() == before
    assert harden(hard).to_dict() == hard.to_dict() != before
    hard.dump(tmp_path / "dumped.py")
    again = Config.fromfile(tmp_path / "dumped.py")
    assert (
        harden(again).to_dict()
        == again.to_dict()
        == Config.fromfile(tmp_path / "dumped.py").to_dict()
    )
    assert again.pretty_text == hard.pretty_text
    for key in before:  # what is there still stands
        if key in ("model", "optim_wrapper", "param_scheduler", "randomness", "default_scope"):
            assert hard.to_dict()[key] == before[key]
    assert hard.train_dataloader.batch_sampler.type == "hire_mlp_mm.PlacedBatchSampler"
    assert hard.train_cfg.type.startswith("hire_mlp_mm.")
    assert hard.default_hooks.checkpoint.type == "hire_mlp_mm.CheckpointHook"


@pytest.mark.parametrize("name", HOSTS)
def test_what_it_names_can_be_built(name):
    """Every hook, and every class of a data set, in the scope of its host."""
    hard = harden(read(name))
    with DefaultScope.overwrite_default_scope(hard.default_scope):
        for hook in hard.custom_hooks:
            if hook.type.startswith("hire_mlp_mm.") and "LoadHook" not in hook.type:
                HOOKS.build(hook)
        built = HOOKS.build(hard.default_hooks.checkpoint)
        assert isinstance(built, CheckpointHook)
        for split in ("train", "val", "test"):
            loader = hard.get(f"{split}_dataloader")
            for dataset in data_sets(loader.dataset if loader else {}):
                kind = DATASETS.get(dataset.type)
                assert issubclass(kind, Guarded)
                assert kind.__name__ == dataset.type.rpartition(".")[2]


def data_sets(dataset):
    inner = [dataset.get("dataset"), *(dataset.get("datasets") or ())]
    inner = [one for one in inner if one]
    for one in inner:
        yield from data_sets(one)
    if not inner and dataset:
        yield dataset


def test_classes_in_the_place_of_names():
    """As mmengine's configs in plain Python have them."""
    dataset = dict(type=CocoDataset, ann_file="a.json")
    cfg = dict(
        train_dataloader=dict(dataset=dataset, sampler=dict(type=DefaultSampler), batch_size=1),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        default_hooks=dict(checkpoint=dict(type=CheckpointHook, interval=2)),
    )
    hard = harden(cfg)
    assert hard.default_hooks.checkpoint.type == "hire_mlp_mm.CheckpointHook"
    assert hard.default_hooks.checkpoint.interval == 2
    assert issubclass(DATASETS.get(hard.train_dataloader.dataset.type), CocoDataset)
    assert harden(hard).to_dict() == hard.to_dict()


def test_a_class_that_no_name_finds_stays():
    class Local(CocoDataset):
        pass

    dataset = dict(type=Local, ann_file="a.json")
    hard = harden(dict(train_dataloader=dict(dataset=dataset, sampler=dict(type="DefaultSampler"))))
    assert hard.train_dataloader.dataset.type is Local


def test_a_path_to_resume_from():
    """mmengine's plain runner takes it for True, and goes on from something else."""
    hard = harden(dict(resume="a.pth"))
    assert (hard.resume, hard.load_from) == (True, "a.pth")


def test_metrics_within_an_evaluator():
    metric = dict(type="CocoMetric", ann_file="a.json")
    hard = harden(dict(test_evaluator=dict(type="Evaluator", metrics=[metric])))
    assert hard.test_evaluator.metrics[0].type == "hire_mlp_mm.CocoMetric"
    hard.default_scope = "mmdet"
    options.dump_predictions(hard, "out.pkl")
    kinds = [one.type for one in hard.test_evaluator.metrics]
    assert kinds == ["hire_mlp_mm.CocoMetric", "mmdet.DumpDetResults"]


@pytest.mark.parametrize(("out_dir", "whole"), [(None, True), ("a/b", True), ("s3://a/b", False)])
def test_checkpoints_elsewhere_are_left_to_their_backend(out_dir, whole):
    hook = OurCheckpointHook(out_dir=out_dir)
    assert (hook.backend_args == dict(backend=WHOLE)) == whole


def test_data_sets_that_read_their_file_in_their_own_way_are_not_checked():
    """LVIS has an API of its own, and Objects365 sorts the categories of an unsorted file."""
    for kind in (LVISV1Dataset, Objects365V1Dataset):
        assert issubclass(guard_dataset(kind), kind)
        assert not issubclass(guard_dataset(kind), GuardedCoco)
    assert issubclass(guard_dataset(CocoDataset), GuardedCoco)


def test_what_is_not_there_is_not_needed():
    """A config that only tests, and one whose checkpoints are switched off."""
    hard = harden(dict(default_hooks=dict(checkpoint=None), train_cfg=None))
    assert hard.default_hooks.checkpoint is None
    assert "train_dataloader" not in hard


def test_a_loop_of_somebody_elses_stays():
    assert harden(dict(train_cfg=dict(type="MyLoop", n=1))).train_cfg.type == "MyLoop"


# The data's order -------------------------------------------------------------------------------


class Numbers(torch.utils.data.Dataset):
    def __init__(self, length: int = 11) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, random.random() + float(np.random.rand()) + float(torch.rand(()))


def loader(harden_it: bool, **options):
    cfg = dict(dataset=Numbers(), sampler=dict(type="DefaultSampler", shuffle=True), batch_size=3)
    cfg = Config(dict(train_dataloader=dict(cfg, **options)))
    cfg = harden(cfg) if harden_it else cfg
    return Runner.build_dataloader(cfg.train_dataloader, seed=0)


@pytest.mark.parametrize("drop_last", [False, True])
def test_unless_it_begins_somewhere_the_batches_are_the_hosts(drop_last):
    plain, hard = (loader(on, drop_last=drop_last, num_workers=0) for on in (False, True))
    indices = [[list(batch) for batch in one.batch_sampler] for one in (plain, hard)]
    assert indices[0] == indices[1]
    assert len(plain) == len(hard) == len(indices[0]) == (3 if drop_last else 4)


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(1, 20),
    size=st.integers(1, 5),
    skip=st.integers(0, 30),
    drop_last=st.booleans(),
    infinite=st.booleans(),
)
def test_a_stream_that_begins_later_is_the_rest_of_it(length, size, skip, drop_last, infinite):
    """Batches, and what is drawn for each of their samples."""

    def stream(begin: int, count: int) -> list:
        kind = InfiniteSampler if infinite else DefaultSampler
        data = Numbers(length)
        batches = PlacedBatchSampler(kind(data, seed=3), size, drop_last=drop_last)
        batches.begin(7, 0, begin)
        seen: list = []
        for _ in range(count + 1):  # passes; the first may have nothing left
            for batch in batches:
                seen.append([data[index] for index in batch])
                if len(seen) == count:
                    return seen
        return seen  # no batches at all

    whole = stream(0, skip + 3)
    assert stream(skip, 3) == whole[skip:]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_in_whichever_process(workers):
    data = loader(True, num_workers=workers)
    data.batch_sampler.begin(5)
    alone = loader(True, num_workers=0)
    alone.batch_sampler.begin(5)
    for one, other in zip(data, alone, strict=True):
        assert one == other


def test_sending_a_batch_to_a_worker_draws_nothing():
    """It is pickled in a thread of the training's process."""
    batch = Batch([4, 2], (0, 0), (1, 3))
    state = torch.get_rng_state(), random.getstate()
    twin = pickle.loads(pickle.dumps(batch))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert list(twin) == list(batch) == [4, 2]
    assert (len(twin), twin[0], twin.place) == (2, 4, (1, 3))


def say_hello(worker_id: int, word: str) -> None:
    get_worker_info().dataset.length = len(word)


def test_a_worker_function_of_the_users_is_called_too():
    given_ = dict(type=say_hello, word="seven..")
    cfg = Config(dict(train_dataloader=dict(
        dataset=Numbers(), sampler=dict(type="DefaultSampler", shuffle=False), batch_size=11,
        num_workers=1, worker_init_fn=given_, disable_subprocess_warning=True,
    )))  # fmt: skip
    cfg = harden(cfg)
    assert cfg.train_dataloader.worker_init_fn.quiet
    built = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    assert isinstance(built, DataLoader)
    (batch,) = built
    assert len(batch[0]) == 11


def test_a_drawn_order_is_kept_by_its_seed():
    """With `diff_rank_seed`, mmengine draws the order's seed, which no config has."""
    batches = PlacedBatchSampler(DefaultSampler(Numbers(), seed=11), 3)
    batches.begin(0, order=5)
    twin = PlacedBatchSampler(DefaultSampler(Numbers(), seed=5), 3)
    twin.begin(0)
    assert [list(one) for one in batches] == [list(one) for one in twin]
    assert batches.order == 5
