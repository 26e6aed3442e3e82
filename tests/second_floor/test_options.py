"""Do options fit the config, or does a line say what would, and is what is missing named?"""

from __future__ import annotations

import logging
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from hire_mlp_mm import HireMLP, HireMLPNet
from hire_mlp_mm.engine import harden, load_config
from hire_mlp_mm.engine.builds import fault_of, misspelt_keys
from hire_mlp_mm.engine.config import check_data, check_file
from hire_mlp_mm.errors import UserError
from tests.conftest import NANO, ROOT

COCO = f"{ROOT}/configs/cascade_mask_rcnn_hire_s_coco.py"
NANO_ADE = f"{ROOT}/configs/upernet_hire_nano_shapes.py"
HEADS = "model.roi_head.bbox_head"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({f"{HEADS}.num_classes": 3}, f"a list of 3: set each, {HEADS}.0.num_classes to {HEADS}.2"),
        ({f"{HEADS}.7.num_classes": 3}, f"is a list of 3, from {HEADS}.0 to {HEADS}.2"),
        ({"model.backbone.archh": "tiny"}, "(HireMLP) has no 'archh'; did you mean 'arch'?"),
        ({"model.backbone.norm_evall": True}, "has no 'norm_evall'; did you mean 'norm_eval'?"),
        ({"optim_wraper.x": 1}, "the config has no 'optim_wraper'; did you mean 'optim_wrapper'?"),
        ({"default_hooks.checkpoint.intervals": 1}, "did you mean 'interval'?"),
        ({"train_dataloader.batch_sizes": 1}, "train_dataloader has no 'batch_sizes'; did you"),
        ({"model.neck.out_channels.x": 1}, "model.neck.out_channels is 256, and has no 'x'"),
        ({"model.backbone.arch.depth": [1]}, "has no 'depth'; did you mean 'depths'?"),
        ({"model.backbone": "tiny"}, "model.backbone (HireMLP) is a dict with"),
        ({"val_dataloader.dataset.pipeline.1.scale.0": 5}, "is a tuple; give all of it"),
        ({"train_pipeline.2.scale": (9, 9)}, "what it stands for: train_dataloader.dataset.pipel"),
        ({"data_root": "/mine/"}, "train_dataloader.dataset.data_root, val_dataloader.dataset.dat"),
        ({"model.backbone.init_cfg": "none"}, "none is taken for text; write None, with a capital"),
        ({"": 3}, "--cfg-options =3: expected KEY=VALUE"),
        ({"model..x": 3}, "expected KEY=VALUE"),
    ],
)
def test_an_option_that_does_not_fit_is_one_line(option, message):
    with pytest.raises(UserError) as error:
        load_config(COCO, options=option)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert next(iter(option)) in str(error.value)


def test_mmengine_says_nothing_while_classes_are_looked_up():
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = said.append
    MMLogger.get_current_instance().addHandler(handler)
    try:
        with pytest.raises(UserError, match="archh"):
            load_config("hire_t_imagenet", options={"model.backbone.archh": "tiny"})
    finally:
        MMLogger.get_current_instance().removeHandler(handler)
    assert said == []


@pytest.mark.parametrize(
    ("options", "key", "value"),
    [
        ({"model.backbone.arch.depths": [1, 1, 1, 1]}, "arch.depths", [1, 1, 1, 1]),
        ({"model.backbone.arch.depths.0": 1}, "arch.depths.0", 1),
        ({"model.backbone.arch": "tiny", "model.backbone.arch.depths.0": 1}, "arch.depths.1", 2),
        ({"model.backbone.init_cfg": None, "model.backbone.init_cfg.a": 1}, "init_cfg.a", 1),
        ({"model.backbone.a_new_key": 1}, "a_new_key", 1),
        # A key that looks like another one, and that the class has.
        ({"model.rpn_head.loss_cls.class_weight": 2.0}, None, 2.0),
        ({"model.backbone.type": "ResNet", "model.backbone._delete_": True}, "type", "ResNet"),
    ],
)
def test_an_option_that_fits_is_set(options, key, value):
    found = load_config(COCO, options=options).model
    path = f"backbone.{key}" if key else "rpn_head.loss_cls.class_weight"
    for name in path.split("."):
        found = found[int(name) if name.isdigit() else name]
    assert found == value


def test_a_size_stays_a_tuple():
    """mmcv's transforms take no list; `scale=400,300` is read as one."""
    key = "train_dataloader.dataset.pipeline.2.scale"
    cfg = load_config("retinanet_hire_s_1x_coco", options={key: [400, 300]})
    assert cfg.train_dataloader.dataset.pipeline[2].scale == (400, 300)


def test_a_named_arch_with_other_depths_can_be_built():
    backbone = load_config(
        COCO, options={"model.backbone.arch.depths": [1, 1, 1, 1]}
    ).model.backbone
    backbone.pop("type")
    model = HireMLP(**{**backbone, "init_cfg": None})
    assert [len(stage.blocks) for stage in model.stages] == [1, 1, 1, 1]
    assert model.out_channels == (64, 128, 320, 512)


@pytest.mark.parametrize("recipe", [COCO, NANO_ADE, f"{ROOT}/configs/hire_s_imagenet.py"])
def test_no_workers(recipe):
    """What torch refuses without workers goes with them, and stays with some."""
    options = {"train_dataloader.num_workers": 0, "train_dataloader.prefetch_factor": 2}
    options["val_dataloader.num_workers"] = 2
    options["val_dataloader.persistent_workers"] = True
    cfg = harden(load_config(recipe, options=options))
    assert not {"persistent_workers", "prefetch_factor"} & cfg.train_dataloader.keys()
    assert cfg.val_dataloader.persistent_workers
    names = ("num_workers", "persistent_workers", "prefetch_factor")
    torch.utils.data.DataLoader(
        [0], **{k: v for k, v in cfg.train_dataloader.items() if k in names}
    )


# Paths -------------------------------------------------------------------------------------------


def fault(cfg: Config, *splits: str) -> str:
    with pytest.raises(UserError) as error:
        check_data(cfg, splits or ("train", "val"))
    return str(error.value)


@pytest.mark.parametrize("given", [None, "elsewhere/"])
def test_a_variable_is_named_where_it_made_the_path(given, monkeypatch):
    monkeypatch.delenv("COCO_ROOT", raising=False)
    if given:
        monkeypatch.setenv("COCO_ROOT", given)
    line = fault(load_config(COCO))
    root = given or "data/coco/"
    assert "annotation" not in line  # which lie in the folder
    assert line.count(f"data set folder {root} not found") == 1  # of both splits
    assert "(in train_dataloader, val_dataloader)" in line
    now = " (now elsewhere/)" if given else ""
    assert line.endswith(f"; set COCO_ROOT{now}")


def test_a_variable_that_plays_no_part_is_not_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COCO_ROOT", "elsewhere/")
    own = {f"{split}_dataloader.dataset.data_root": f"gone/{split}/" for split in ("train", "val")}
    own["val_evaluator.ann_file"] = "gone/val/a.json"
    line = fault(load_config(COCO, options=own))
    assert "COCO_ROOT" not in line
    assert "data set folder gone/train/ not found (in train_dataloader), data set folder" in line
    assert "train_dataloader.dataset.data_root=... val_dataloader.dataset.data_root=..." in line
    del own["val_evaluator.ann_file"]
    line = fault(load_config(COCO, options=own))
    assert "set COCO_ROOT (now elsewhere/), and add --cfg-options train_dataloader" in line


@pytest.mark.parametrize("wrapper", ["dataset", "datasets"])
def test_a_path_within_a_wrapper_is_named_by_its_key(wrapper, tmp_path):
    inner = dict(data_root=str(tmp_path), ann_file="a.json", data_prefix=dict(img="images"))
    dataset = {"type": "Wrapper", wrapper: inner if wrapper == "dataset" else [inner]}
    line = fault(Config(dict(train_dataloader=dict(dataset=dataset))), "train")
    place = f"train_dataloader.dataset.{wrapper}" + (".0" if wrapper == "datasets" else "")
    assert f"add --cfg-options {place}.ann_file=... {place}.data_prefix.img=..." in line


@pytest.mark.parametrize("key", ["ann_file", "data_root"])
def test_several_files_in_the_place_of_one(key):
    cfg = Config(dict(train_dataloader=dict(dataset={key: ["a.json", "b.json"]})))
    said = fault(cfg, "train")
    assert said.startswith(f"train_dataloader.dataset.{key} is a list; expected one path")


def test_a_file_in_the_place_of_the_work_dir(tmp_path):
    (tmp_path / "work").touch()
    with pytest.raises(UserError, match="work is a file; name a folder"):
        load_config(COCO, work_dir=str(tmp_path / "work"))


@pytest.mark.parametrize("note", [False, True])
def test_a_folder_in_the_place_of_a_checkpoint(note, tmp_path):
    with pytest.raises(UserError, match=r"is a folder; it has no \.pth file"):
        check_file(str(tmp_path), "checkpoint")
    for number in (1, 2):
        (tmp_path / f"epoch_{number}.pth").touch()
        os.utime(tmp_path / f"epoch_{number}.pth", (number, number))
    if note:
        (tmp_path / "last_checkpoint").write_text("/elsewhere/epoch_1.pth")
    named = rf"is a folder; name a file in it, such as .*epoch_{1 if note else 2}\.pth"
    with pytest.raises(UserError, match=named):
        check_file(str(tmp_path), "checkpoint")


# Parts that cannot be built ----------------------------------------------------------------------


def test_a_key_that_no_run_reads_is_named():
    cfg = load_config(COCO)
    assert not [*misspelt_keys(cfg)]
    cfg.tran_cfg = dict(max_epochs=1)
    cfg.val_evaluator_2 = cfg.my_own = None
    (line,) = misspelt_keys(cfg)
    assert line == "the config's tran_cfg has no effect; did you mean 'train_cfg'?"


def test_what_refuses_to_be_built_is_left_alone_where_no_key_is_found():
    assert (
        fault_of(TypeError("X.__init__() got an unexpected keyword argument 'x'"), Config()) == ""
    )
    assert fault_of(ValueError("what?"), load_config(COCO)) == ""


# The backbone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HireMLPNet, HireMLP])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (3, 32, 32),
            r"\(3, 32, 32\); expected \(N, 3, H, W\); image\[None\] makes a batch",
        ),
        ((1, 4, 32, 32), r"\(1, 4, 32, 32\); expected \(N, 3, H, W\)$"),
        ((32, 32), r"\(32, 32\); expected \(N, 3, H, W\)$"),
    ],
)
def test_images_of_another_shape(kind, shape, message):
    with pytest.raises(ValueError, match=f"HireMLP: the images are of shape {message}"):
        kind(NANO).eval()(torch.rand(shape))


def test_images_of_another_shape_in_the_inference_form():
    from hire_mlp_mm.fuse import fuse

    with pytest.raises(ValueError, match=r"expected \(N, 3, H, W\)"):
        fuse(HireMLPNet(NANO).eval())(torch.rand(3, 32, 32))


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (dict(type="GN"), "has no num_groups; expected one that divides"),
        ("BN", "norm_cfg='BN'; expected a dict"),
        (dict(requires_grad=False), "expected a dict"),
    ],
)
def test_a_norm_that_cannot_be_built(norm, message):
    with pytest.raises(ValueError, match=message):
        HireMLP(NANO, norm_cfg=norm)


def test_weights_of_a_backbone_alone_are_initialised_in_silence(capsys):
    model = HireMLP(NANO)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert model.is_init
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert capsys.readouterr() == ("", "")
