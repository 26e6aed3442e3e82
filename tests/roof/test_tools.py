"""Do the tools train, survive, test and draw, and say in one line what is missing?"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from PIL import Image
from shapes import write_shapes

from hire_mlp_mm import mmcv_ops
from hire_mlp_mm.checkpoint import CheckpointError
from hire_mlp_mm.engine import harden
from hire_mlp_mm.engine.checkpoints import load_checked
from hire_mlp_mm.engine.config import check_data
from hire_mlp_mm.errors import UserError
from hire_mlp_mm.hire_mlp import HireMLPNet
from tests.conftest import NANO, ROOT
from tests.reference import classifier_state

DETECTION = "configs/cascade_mask_rcnn_hire_nano_shapes.py"
SEGMENTATION = "configs/upernet_hire_nano_shapes.py"
CLASSIFIER = """
custom_imports = dict(imports=["hire_mlp_mm"])
default_scope = "mmpretrain"
model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="HireMLP", arch=dict(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), out_indices=(3,)
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead", num_classes=2, in_channels=16, loss=dict(type="CrossEntropyLoss"),
        topk=(1,),
    ),
    data_preprocessor=dict(num_classes=2, mean=[127.0] * 3, std=[64.0] * 3, to_rgb=True),
)
data_root = "{{$CLASSES_ROOT:data/}}"
pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="CustomDataset", data_root=data_root, pipeline=pipeline),
)
val_dataloader = train_dataloader
test_dataloader = train_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=4)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-2))
randomness = dict(seed=0)
default_hooks = dict(visualization=dict(type="VisualizationHook", enable=False))
visualizer = dict(type="UniversalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
"""


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> dict[str, str]:
    """Environment with the path of a small data set."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=8, val=4)
    return {"SHAPES_ROOT": str(folder)}


def options(iterations: int, every: int) -> list[str]:
    """Command line of a short training with a checkpoint every few iterations."""
    return [
        "--cfg-options",
        f"train_cfg.max_iters={iterations}",
        f"train_cfg.val_interval={iterations}",
        f"default_hooks.checkpoint.interval={every}",
        "default_hooks.checkpoint.max_keep_ckpts=10",
        "default_hooks.logger.interval=1",
        "train_dataloader.batch_size=2",
    ]


def metrics(work_dir: Path) -> dict[str, float]:
    """What the last test run in a work dir wrote."""
    return json.loads(sorted(work_dir.glob("*/2*.json"))[-1].read_text())


@pytest.mark.timeout(600)
def test_detector_trains_and_is_tested(shapes, tmp_path, fork_tool):
    train = ["tools/train.py", DETECTION, "--work-dir", tmp_path / "train"]
    done = fork_tool(*train, *options(2, 2), env=shapes)
    assert done.returncode == 0, done.stderr
    assert mmcv_ops.describe() in done.stdout
    (log,) = (tmp_path / "train").glob("*/*.log")
    assert f"environment, config and hooks are in {log} alone" in done.stdout
    for text in ("System environment", "Config:", "Hooks will be", "paramwise_options"):
        assert text in log.read_text()
        assert text not in done.stdout
    last = torch.load(tmp_path / "train/iter_2.pth", weights_only=False)
    assert last["meta"]["iter"] == 2
    assert len(last["optimizer"]["state"]) > 100

    test = ["tools/test.py", DETECTION, tmp_path / "train/iter_2.pth"]
    test += ["--work-dir", tmp_path / "test", "--out", tmp_path / "out.pkl"]
    done = fork_tool(*test, "--show-dir", tmp_path / "pictures", env=shapes)
    assert done.returncode == 0, done.stderr
    assert {"coco/bbox_mAP", "coco/segm_mAP"} <= metrics(tmp_path / "test").keys()
    assert len(pickle.loads((tmp_path / "out.pkl").read_bytes())) == 4
    pictures = list((tmp_path / "pictures").glob("*.jpg"))
    assert len(pictures) == 4 == len(list((tmp_path / "pictures").rglob("*")))
    assert Image.open(pictures[0]).size == (256, 128)  # truth and prediction side by side


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_other_forms_of_a_detector_have_the_same_figures(shapes, tmp_path, fork_tool):
    train = ["tools/train.py", DETECTION, "--work-dir", tmp_path / "train", *options(30, 30)]
    done = fork_tool(*train, env=shapes)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("HireMLP training starts from random weights") == 1
    figures, scores = {}, {}
    forms = {
        "plain": [],
        "fused": ["--fuse", "--channels-last"],
        "mixed": ["--amp"],
        "fused mixed": ["--fuse", "--channels-last", "--amp", "--amp-dtype", "bfloat16"],
    }
    for name, flags in forms.items():
        test = ["tools/test.py", DETECTION, tmp_path / "train/iter_30.pth", *flags]
        out = tmp_path / f"{name}.pkl"
        done = fork_tool(*test, "--work-dir", tmp_path / name, "--out", out, env=shapes)
        assert done.returncode == 0, done.stderr
        figures[name] = metrics(tmp_path / name)
        predictions = pickle.loads(out.read_bytes())
        scores[name] = torch.cat([one["pred_instances"]["scores"] for one in predictions])
    plain = figures.pop("plain")
    for name, found in figures.items():
        within = 0.02 if "mixed" in name else 1e-3
        for metric in ("coco/bbox_mAP", "coco/segm_mAP"):
            assert found[metric] == pytest.approx(plain[metric], abs=within), (name, metric)
    assert len(scores["plain"]) > 0
    assert scores["fused"].numpy() == pytest.approx(scores["plain"].numpy(), rel=1e-3)
    test = ["tools/test.py", DETECTION, tmp_path / "train/iter_30.pth"]
    zero = ["--fuse", "--cfg-options", "model.backbone.shift_padding=zero"]
    done = fork_tool(*test, *zero, "--work-dir", tmp_path / "zero", env=shapes)
    assert done.returncode == 2
    assert "error: --fuse: backbone.stages.0.blocks." in done.stderr


@pytest.mark.timeout(600)
def test_segmentor_trains_resumes_and_is_tested(shapes, tmp_path, fork_tool):
    train = ["tools/train.py", SEGMENTATION, "--work-dir", tmp_path / "train"]
    done = fork_tool(*train, "--resume", *options(2, 1), env=shapes)
    assert done.returncode == 0, done.stderr
    assert "training starts from the beginning" in done.stdout
    assert "resumed from" not in done.stdout
    done = fork_tool(*train, "--resume", *options(2, 1), env=shapes)
    assert done.returncode == 0, done.stderr
    assert f"nothing is left to train: {tmp_path}/train/iter_2.pth is the end" in done.stdout
    checkpoint = tmp_path / "train/iter_1.pth"
    done = fork_tool(*train, "--resume", checkpoint, *options(4, 1), env=shapes)
    assert done.returncode == 0, done.stderr
    assert "resumed epoch: 0, iter: 1" in done.stdout
    test = ["tools/test.py", SEGMENTATION, tmp_path / "train/iter_4.pth"]
    done = fork_tool(
        *test, "--work-dir", tmp_path / "test", "--show-dir", tmp_path / "pictures", env=shapes
    )
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "test")["mIoU"] >= 0
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_multi_scale_test(shapes, tmp_path, fork_tool):
    """--tta with the plain view alone gives the plain figures; with four views, others."""
    config = tmp_path / "tta.py"
    config.write_text(
        f"_base_ = ['{ROOT}/{SEGMENTATION}']\n"
        "views = 2\n"
        "tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[\n"
        "    [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (1.0, 0.5)[:views]],\n"
        "    [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)[:views]],\n"
        "    [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]\n"
    )
    done = fork_tool(
        "tools/train.py", config, "--work-dir", tmp_path / "train", *options(1, 1), env=shapes
    )
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "train/iter_1.pth"
    results = {}
    one_view = tmp_path / "one.py"
    one_view.write_text(config.read_text().replace("views = 2", "views = 1"))
    for name, flags in (("plain", []), ("tta", ["--tta"]), ("one", ["--tta"])):
        config = one_view if name == "one" else config
        work_dir = tmp_path / name
        done = fork_tool(
            "tools/test.py", config, checkpoint, "--work-dir", work_dir, *flags, env=shapes
        )
        assert done.returncode == 0, done.stderr
        results[name] = metrics(work_dir)
    times = ("data_time", "time")
    plain, tta, one = (
        {k: v for k, v in results[name].items() if k not in times} for name in results
    )
    # A pixel whose classes are about as likely may turn with the rounding of the views' mean.
    assert one == pytest.approx(plain, abs=0.05)
    assert tta != pytest.approx(plain, abs=0.05)


@pytest.mark.timeout(600)
def test_classifier_trains_and_is_tested(tmp_path, fork_tool):
    """Black against white pictures: learnt in a few steps, so the accuracy says something."""
    for label, level in (("dark", 20), ("light", 230)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(4):
            image = Image.new("RGB", (64, 64), (level + i, level, level))
            image.save(tmp_path / "data" / label / f"{i}.png")
    config = tmp_path / "classifier.py"
    config.write_text(CLASSIFIER)
    env = {"CLASSES_ROOT": str(tmp_path / "data")}
    done = fork_tool("tools/train.py", config, "--work-dir", tmp_path / "train", env=env)
    assert done.returncode == 0, done.stderr
    test = ["tools/test.py", config, tmp_path / "train/epoch_4.pth", "--work-dir", tmp_path / "t"]
    done = fork_tool(*test, "--out", tmp_path / "o.pkl", "--show-dir", tmp_path / "p", env=env)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "t")["accuracy/top1"] == 100
    assert len(pickle.loads((tmp_path / "o.pkl").read_bytes())) == 8
    # The images of the two classes have the same names.
    assert len(list((tmp_path / "p/dark").glob("*.png"))) == 4
    assert len(list((tmp_path / "p/light").glob("*.png"))) == 4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_recipe_runs_under_the_hosts_own_train_py(shapes, tmp_path, run_tool):
    """In a process that has imported nothing: the config's custom_imports do it all."""
    tool = Path(find_spec("mmdet").origin).parent / ".mim/tools/train.py"
    done = run_tool(tool, DETECTION, "--work-dir", tmp_path, *options(1, 1), env=shapes)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "iter_1.pth").exists()


COCO, ADE = "configs/cascade_mask_rcnn_hire_s_coco.py", "configs/upernet_hire_s_ade20k.py"
NO_WEIGHTS = ["--cfg-options", "model.backbone.init_cfg=None"]
BALANCED = """
_base_ = ["{base}"]
inner = {{{{_base_.train_dataloader.dataset}}}}
train_dataloader = dict(
    dataset=dict(_delete_=True, type="ClassBalancedDataset", oversample_thr=0.1, dataset=inner)
)
"""
MISTAKES = {
    "config": (["train", "configs/nothing.py"], "config configs/nothing.py not found"),
    "coco": (
        ["train", COCO], "data set folder nowhere/ not found (in train_dataloader, val_dataloader)",
    ),
    "ade": (
        ["train", ADE], "(in train_dataloader, val_dataloader); set ADE_ROOT (now nowhere/)",
    ),
    "annotations": (
        ["train", COCO, "--cfg-options", "train_dataloader.dataset.data_root=."],
        "annotation file ./annotations/instances_train2017.json not found",
    ),
    "evaluator": (
        ["test", DETECTION, "setup.py", "--cfg-options", "test_evaluator.ann_file=gone.json"],
        "annotation file gone.json not found (in test_evaluator)",
    ),
    "resume": (["train", DETECTION, "--resume", "gone.pth"], "checkpoint gone.pth not found"),
    "checkpoint": (["test", DETECTION, "gone.pth"], "checkpoint gone.pth not found"),
    "weights": (
        [
            "train", DETECTION, "--cfg-options", "model.backbone.init_cfg.type=Pretrained",
            "model.backbone.init_cfg.checkpoint=gone.pth",
        ],
        "weight file gone.pth not found",
    ),
    "unpublished": (
        [
            "train", DETECTION, "--cfg-options", "model.backbone.init_cfg.type=Pretrained",
            "model.backbone.init_cfg.checkpoint=hire-mlp://large",
        ],
        "no such weights were published",
    ),
    "not a checkpoint": (["test", DETECTION, "setup.py"], "setup.py cannot be read: it is text"),
    "not a config": (["train", "README.md"], "config README.md cannot be read"),
    "out": (["test", DETECTION, "setup.py", "--out", "setup.py"], "exists already"),
    "out name": (["test", DETECTION, "setup.py", "--out", "x.json"], "ends in .pkl"),
    "tta": (["test", DETECTION, "setup.py", "--tta"], "no tta_model"),
    "one process": (
        ["train", "configs/upernet_hire_l_ade20k_fsdp.py"],
        "upernet_hire_l_ade20k_fsdp.py divides the model among several processes",
    ),
    "argument": (
        ["train", DETECTION, "--cfg-options", "model.bakcbone=None"],
        "model (CascadeRCNN) has no 'bakcbone'; did you mean 'backbone'?",
    ),
    "assertion": (
        ["train", DETECTION, "--cfg-options", "model.neck.num_outs=1"],
        "cannot be built: AssertionError",
    ),
    "unknown argument": (
        ["train", DETECTION, "--cfg-options", "optim_wrapper.optimizer.lrr=1"],
        "optim_wrapper.optimizer (AdamW) takes no 'lrr'; did you mean 'lr'?",
    ),
    "argument of a hook": (
        ["train", DETECTION, "--cfg-options", "default_hooks.logger.every=1"],
        "default_hooks.logger (LoggerHook) takes no 'every'; delete",
    ),
    "argument of the checkpoints": (
        ["train", DETECTION, "--cfg-options", "default_hooks.checkpoint.every=1"],
        "default_hooks.checkpoint (CheckpointHook) takes no 'every'; delete",
    ),
    "argument of a loader": (
        ["train", DETECTION, "--cfg-options", "train_dataloader.batches=1"],
        "train_dataloader takes no 'batches'; did you mean 'batch_size'?",
    ),
    "argument of a data set": (
        ["train", DETECTION, "--cfg-options", "val_dataloader.dataset.split=val"],
        "val_dataloader.dataset (CocoDataset) takes no 'split'; delete val_dataloader.dataset",
    ),
    "missing argument": (
        ["train", DETECTION, "--cfg-options", "model.neck.type=CSPNeXtPAFPN"],
        "model.neck (CSPNeXtPAFPN) takes no",
    ),
    "missing type": (
        ["train", DETECTION, "--cfg-options", "model.neck.type=FPNN"],
        "model.neck.type: no class is called 'FPNN'; did you mean 'FPN'?",
    ),
    "value of HireMLP": (
        ["train", DETECTION, "--cfg-options", "model.backbone.frozen_stages=9"],
        "error: HireMLP: frozen_stages=9; expected -1 (nothing)",
    ),
    "norm without groups": (
        ["train", DETECTION, "--cfg-options", "model.backbone.norm_cfg.type=GN"],
        "error: HireMLP: norm_cfg={'type': 'GN'} has no num_groups",
    ),
    "classes of ADE20K": (
        [
            "train", SEGMENTATION, "--cfg-options", "train_dataloader.dataset.type=ADE20KDataset",
            "train_dataloader.dataset.metainfo.classes=(wall,thing,sky)",
        ],
        "train_dataloader.dataset.metainfo.classes: 'thing' is none of the 150 classes of ADE20K",
    ),
    "balanced masks": (
        ["train", "BALANCED"],
        "train_dataloader.dataset: ClassBalancedDataset asks which classes an image has",
    ),
    "a folder": (["test", DETECTION, "configs"], "checkpoint configs is a folder"),
    "load from a folder": (
        ["train", DETECTION, "--cfg-options", "load_from=configs"],
        "checkpoint configs is a folder",
    ),
    "brackets": (
        ["train", DETECTION, "--cfg-options", "model.neck.in_channels=[1,[2]"], "brackets",
    ),
    "no key": (["train", DETECTION, "--cfg-options", "=3"], "expected KEY=VALUE"),
    "auto scale": (["train", DETECTION, "--auto-scale-lr"], "base_batch_size"),
    "no value": (["train", DETECTION, "--cfg-options", "a=1", "b"], "expected KEY=VALUE"),
    "config after options": (
        ["train", "--cfg-options", "a=1", DETECTION], "and the config before it",
    ),
    "config after --resume": (["train", "--resume", DETECTION], "name it before the options"),
    "index": (
        ["train", DETECTION, "--cfg-options", "train_dataloader.dataset.pipeline.9.x=1"],
        "train_dataloader.dataset.pipeline is a list of",
    ),
    "misspelt key": (
        ["train", DETECTION, "--cfg-options", "trian_cfg.max_iters=1"],
        "the config has no 'trian_cfg'; did you mean 'train_cfg'?",
    ),
    "an option of other programs": (
        ["train", DETECTION, "--epochs", "3"],
        "unknown option '--epochs'; did you mean --cfg-options train_cfg.max_epochs=N?",
    ),
    "a config that ends": (["train", "ENDS"], "ends.py cannot be read: SystemExit: 3"),
    "loop": (
        ["train", DETECTION, "--cfg-options", "train_cfg.max_iter=1"],
        "train_cfg (IterBasedTrainLoop) has no 'max_iter'; did you mean 'max_iters'?",
    ),
    "folder": (
        ["train", "elsewhere/upernet_hire_s_ade20k.py"],
        "the recipe of that name is called upernet_hire_s_ade20k, without a folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(mistake, shapes, tmp_path, fork_tool):
    (tool, *args), message = MISTAKES[mistake]
    balanced = tmp_path / "balanced.py"
    balanced.write_text(BALANCED.format(base=ROOT / SEGMENTATION))
    ends = tmp_path / "ends.py"
    ends.write_text("raise SystemExit(3)")
    args = [dict(BALANCED=balanced, ENDS=ends).get(arg, arg) for arg in args]
    env = {**shapes, "COCO_ROOT": "nowhere/", "ADE_ROOT": "nowhere/"}
    done = fork_tool(f"tools/{tool}.py", *args, "--work-dir", tmp_path, env=env)
    lines = [
        line
        for line in done.stderr.splitlines()
        if line.startswith(f"{tool}.py: error: ") and message in line
    ]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert ("Traceback" in done.stderr) == ("cannot be built" in message)


@pytest.mark.parametrize("several", [False, True])
def test_advice_on_missing_data_can_be_followed(several, tmp_path):
    """Where the config reads no variable: keys that, set to what is there, are all it takes."""
    one = dict(data_root="gone", ann_file="a.json", data_prefix=dict(img="images"))
    dataset = dict(type="ConcatDataset", datasets=[one, dict(dataset=one)]) if several else one
    evaluator = dict(type="CocoMetric", ann_file="gone/a.json")
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=dataset),
            val_dataloader=dict(dataset=one),
            val_evaluator=[dict(type="Other"), evaluator] if several else evaluator,
        )
    )
    (tmp_path / "images").mkdir()
    (tmp_path / "a.json").touch()
    with pytest.raises(UserError) as error:
        check_data(cfg, ("train", "val"))
    advice = str(error.value).partition("add --cfg-options ")[2]
    keys = [word.removesuffix("=...") for word in advice.split()]
    paths = {True: tmp_path / "a.json", False: tmp_path}
    cfg.merge_from_dict({key: str(paths[key.endswith("ann_file")]) for key in keys})
    check_data(cfg, ("train", "val"))
    assert len(keys) == 3 + several
    assert keys[-2:] == [
        "val_dataloader.dataset.data_root",
        "val_evaluator.1.ann_file" if several else "val_evaluator.ann_file",
    ]


@pytest.mark.parametrize("hardened", [False, True])
def test_data_sets_that_fetch_themselves_may_be_missing(hardened):
    loaders = {
        name: dict(dataset=dict(type=name, data_root="gone", split="train"), sampler=None)
        for name in ("CIFAR10", "ImageNet")
    }
    cfg = Config(dict(train_dataloader=loaders["CIFAR10"], val_dataloader=loaders["ImageNet"]))
    cfg = harden(cfg) if hardened else cfg
    check_data(cfg, ("train",))
    with pytest.raises(UserError, match=r"data set folder gone not found \(in val_dataloader\)"):
        check_data(cfg, ("train", "val"))


def test_a_checkpoint_of_another_model(shapes, tmp_path, fork_tool):
    """mmengine would load what fits, here nothing, and report a figure."""
    state = {"layers.0.weight": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "official.pth")
    args = ["--work-dir", tmp_path]
    done = fork_tool("tools/test.py", SEGMENTATION, tmp_path / "official.pth", *args, env=shapes)
    assert done.returncode == 2
    assert "is not of this config's model" in done.stderr
    assert "it holds layers.0.weight" in done.stderr


@pytest.mark.parametrize("container", [None, "state_dict", "model"])
@pytest.mark.parametrize("official", [False, True])
def test_a_backbone_in_the_place_of_a_checkpoint(container, official, shapes, tmp_path, fork_tool):
    state = classifier_state("tiny") if official else HireMLPNet(NANO).state_dict()
    file = tmp_path / "backbone.pth"
    torch.save({container: state} if container else state, file)
    args = ["--work-dir", tmp_path / "w"]
    done = fork_tool("tools/test.py", SEGMENTATION, file, *args, env=shapes)
    assert done.returncode == 2
    assert "holds a backbone alone, and a checkpoint of the whole model is needed" in done.stderr
    assert ("hire-mlp convert --classifier" in done.stderr) == official
    assert "model.backbone.init_cfg.checkpoint" in done.stderr


class Renaming(torch.nn.Module):
    """A model that renames a part and resizes another as it loads, as the hosts' do."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.head = torch.nn.Linear(2, 2)
        self.place = torch.nn.Parameter(torch.ones(size))
        self.rest = torch.nn.Linear(2, 2)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for key in [key for key in state_dict if key.startswith("old_head.")]:
            state_dict[key.replace("old_head", "head")] = state_dict.pop(key)
        if len(state_dict["place"]) != len(self.place):
            state_dict["place"] = state_dict["place"].mean().expand(len(self.place))
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_what_a_model_renames_and_resizes_fits():
    state = Renaming().state_dict()
    state = {key.replace("head.", "old_head."): value for key, value in state.items()}
    model = Renaming(size=5)
    assert load_checked({**state, "junk": torch.ones(1)}, model, "file") == ["junk"]
    assert torch.equal(model.head.weight, state["old_head.weight"])
    for key in ("rest.weight", "old_head.bias"):
        less = {k: v for k, v in state.items() if k != key}
        with pytest.raises(CheckpointError, match=r"1 of 5 tensors are missing"):
            load_checked(less, model, "file")
        with pytest.raises(CheckpointError, match=r"1 of 5 tensors .* of another shape"):
            load_checked({**state, key: torch.ones(7)}, model, "file")


def test_a_checkpoint_of_a_deeper_arch_is_refused():
    """Every tensor of the model is there, so that mmengine would give a figure."""
    small, tiny = (
        torch.nn.ModuleDict(dict(backbone=HireMLPNet(dict(NANO, depths=depths))))
        for depths in ((1, 2, 4, 2), (1, 1, 4, 2))
    )
    load_checked(small.state_dict(), small, "file")
    with pytest.raises(CheckpointError, match=r"file is a network with depths 1,2,4,2 .* set arch"):
        load_checked(small.state_dict(), tiny, "file")
    with pytest.raises(CheckpointError, match="it holds no tensors under state_dict"):
        load_checked({}, small, "file")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--amp", "--amp-dtype", "float16"], "float16 on a CPU: expected bfloat16"),
        (["--amp-dtype", "bfloat16"], "expected --amp, too"),
    ],
)
def test_amp_that_cannot_be(options, message, shapes, tmp_path, fork_tool):
    done = fork_tool("tools/train.py", DETECTION, *options, "--work-dir", tmp_path, env=shapes)
    assert done.returncode == 2
    assert message in done.stderr


def test_scripts_say_how_they_are_used():
    for name, words in (("dist_train", 1), ("dist_test", 2), ("slurm_train", 1)):
        command = ["bash", f"tools/{name}.sh", *["x"] * (words - 1)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert f"usage: {name}.sh" in done.stderr


def test_slurm_command(tmp_path):
    """What slurm_train.sh asks of srun."""
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS": "4"}
    command = ["bash", "tools/slurm_train.sh", "part", "job", COCO, "--amp"]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )  # fmt: skip
    asked = done.stdout.split()
    assert {"--partition=part", "--ntasks=4", "--gres=gpu:4", "--launcher", "slurm"} <= set(asked)
    assert asked[-1] == "--amp"
