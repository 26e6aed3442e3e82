"""Does a prediction give the hosts' numbers, a file for each image, and a line for what is odd?"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import hire_mlp_mm
from hire_mlp_mm.data.palette import colours, palette_for
from hire_mlp_mm.errors import DataError, UserError
from hire_mlp_mm.explain import compare_fields, explain
from hire_mlp_mm.prediction.inputs import find_inputs
from hire_mlp_mm.prediction.outputs import Names
from tests.conftest import NANO, ROOT

DIMS = list(NANO["dims"])
CLASSES = ("circle", "square", "big triangle")
PALETTE = [(220, 20, 60), (0, 0, 230), (0, 200, 0)]
MODELS_OF = {
    "detection": f"""
_base_ = "{ROOT}/configs/cascade_mask_rcnn_hire_nano_shapes.py"
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{NANO})),
    neck=dict(in_channels={DIMS}),
    test_cfg=dict(rpn=dict(nms_pre=30, max_per_img=10), rcnn=dict(score_thr=0.0, max_per_img=8)),
)
""",
    "segmentation": f"""
_base_ = "{ROOT}/configs/upernet_hire_nano_shapes.py"
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{NANO})),
    decode_head=dict(in_channels={DIMS}, channels=8, num_classes=3),
    auxiliary_head=dict(in_channels={DIMS[2]}, channels=8, num_classes=3),
)
""",
    "classification": f"""
_base_ = "{ROOT}/configs/hire_t_imagenet.py"
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{NANO})),
    head=dict(num_classes=7, in_channels={DIMS[3]}),
    data_preprocessor=dict(num_classes=7),
)
""",
}
SEVEN = tuple("abcdefg")
THR = dict(score_thr=0.001)


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that give each image other predictions."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            torch.nn.init.normal_(module.weight, std=0.8 / module.weight[0].numel() ** 0.5)
    return model


@pytest.fixture(scope="module")
def work_dirs(tmp_path_factory) -> dict[str, Path]:
    """What a training leaves, without its data: a config, a checkpoint, a note."""
    folders = {}
    for task, text in MODELS_OF.items():
        folder = folders[task] = tmp_path_factory.mktemp(task)
        (folder.parent / f"{task}.py").write_text(text)
        cfg = Config.fromfile(folder.parent / f"{task}.py")
        cfg.dump(folder / f"{task}.py")
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = randomised(MODELS.build(cfg.model))
        classes = SEVEN if task == "classification" else CLASSES
        meta = dict(dataset_meta=dict(classes=classes, palette=PALETTE))
        torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / "iter_9.pth")
        (folder / "last_checkpoint").write_text("somewhere/else/iter_9.pth")
    return folders


def scene(seed: int, width: int = 96, height: int = 64) -> np.ndarray:
    """An image (H, W, 3) of soft patches and a box."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    x, y = (int(value) for value in rng.integers(0, 30, 2))
    image[y : y + 20, x : x + 25] = rng.integers(0, 256, 3)
    return image


def save(path: Path, seed: int = 0, **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(seed, **options)).save(path)
    return path


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Five images, one of them broken; two have one name; and files that are no images."""
    folder = tmp_path / "my photographs"
    save(folder / "a.png", 1)
    save(folder / "b.jpg", 2)
    save(folder / "été 1/a.png", 3, width=80, height=72)
    save(folder / "z/a.png", 4)
    (folder / "z/broken.jpg").write_bytes((folder / "b.jpg").read_bytes()[:-300])
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


GOOD = ["a.png", "b.jpg", "z/a.png", "été 1/a.png"]


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (96, 64))
    for seed in range(4):
        writer.write(scene(seed))
    writer.release()
    return path


def files_of(folder: Path) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def read_json(path: Path):
    return json.loads(path.read_text())


def frames_of(path: Path) -> tuple[int, float]:
    """How many frames a video has, and how many per second."""
    video = cv2.VideoCapture(str(path))
    count = 0
    while video.read()[0]:
        count += 1
    return count, video.get(cv2.CAP_PROP_FPS)


def same(one, other, **tolerance: float) -> None:
    """Check that two lists of COCO results are equal to a tolerance."""
    assert [r["category_id"] for r in one] == [r["category_id"] for r in other]
    for key in ("score", "bbox"):
        ours, theirs = (np.array([r[key] for r in results]) for results in (one, other))
        np.testing.assert_allclose(ours, theirs, **tolerance)


# What comes out ---------------------------------------------------------------------------------


def test_a_detector_writes_cocos_results(work_dirs, photographs, tmp_path):
    lines: list[str] = []
    out = tmp_path / "out"
    done = hire_mlp_mm.predict(work_dirs["detection"], photographs, out, say=lines.append, **THR)
    assert (done.images, len(done.faults)) == (4, 1)
    assert done.faults == [f"{photographs}/z/broken.jpg: the JPEG is truncated"]
    assert lines[0].endswith("is no image or video: 1 hidden, 1 .txt")
    assert str(work_dirs["detection"] / "iter_9.pth") in lines[1]
    expected = ["images.json", "predictions.json", *(f"pictures/{name}" for name in GOOD)]
    assert files_of(out) == sorted(expected)
    for name in GOOD:
        picture = np.asarray(Image.open(out / "pictures" / name))
        before = np.asarray(Image.open(photographs / name))
        assert picture.shape == before.shape
        assert (picture != before).any()
    results = read_json(out / "predictions.json")
    with contextlib.redirect_stdout(None):
        coco = COCO(out / "images.json")
        loaded = coco.loadRes(str(out / "predictions.json"))
    assert [coco.imgs[i]["file_name"] for i in sorted(coco.imgs)] == GOOD
    assert len(loaded.anns) == len(results) > 4
    for result in results:
        image = coco.imgs[result["image_id"]]
        assert result["file_name"] == image["file_name"]
        assert result["category_name"] == CLASSES[result["category_id"] - 1]
        assert result["score"] >= THR["score_thr"]
        x, y, width, height = result["bbox"]
        assert 0 <= x <= x + width <= image["width"] + 0.01
        assert 0 <= y <= y + height <= image["height"] + 0.01
        mask = coco_mask.decode(result["segmentation"])
        assert mask.shape == (image["height"], image["width"])


def test_a_segmentor_writes_labels(work_dirs, photographs, clip, tmp_path):
    save(photographs / "b.png", 5)  # whose mask cannot have the name that b.jpg's has
    out = tmp_path / "out"
    inputs = [photographs, clip]
    done = hire_mlp_mm.predict(work_dirs["segmentation"], inputs, out, pictures=False)
    assert (done.images, len(done.faults)) == (9, 1)
    frames = [f"masks/clip.avi/{i:06d}.png" for i in range(4)]
    names = ["a.png", "b.png", "b.png.png", "z/a.png", "été 1/a.png"]
    masks = [f"masks/my photographs/{name}" for name in names]
    assert files_of(out) == sorted(["classes.csv", *masks, *frames])
    found = list(hire_mlp_mm.Predictor(work_dirs["segmentation"])(photographs / "a.png", clip))
    for prediction, file in zip(found, [masks[0], *frames], strict=True):
        image = Image.open(out / file)
        assert image.mode == "P"
        assert image.getpalette()[:9] == [value for colour in PALETTE for value in colour]
        np.testing.assert_array_equal(np.asarray(image), prediction.results)
        assert prediction.results.shape == prediction.image.shape[:2]
    rows = list(csv.DictReader((out / "classes.csv").open()))
    assert [row["name"] for row in rows] == list(CLASSES)


def test_a_classifier_writes_a_table(work_dirs, photographs, clip, tmp_path):
    out = tmp_path / "out"
    hire_mlp_mm.predict(work_dirs["classification"], [photographs, clip], out)
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == 5 * (4 + 4)
    assert [row["rank"] for row in rows[:5]] == list("12345")
    assert {row["frame"] for row in rows} == {"", "0", "1", "2", "3"}
    scores = [float(row["score"]) for row in rows[:5]]
    assert scores == sorted(scores, reverse=True)
    assert all(SEVEN[int(row["label"])] == row["class"] for row in rows)
    picture = Image.open(out / "pictures/my photographs/a.png")
    assert min(picture.size) == 224  # grown, so that the text is legible


@pytest.mark.parametrize("task", ["detection", "classification"])
def test_a_video_comes_out_again(task, work_dirs, clip, tmp_path):
    done = hire_mlp_mm.predict(work_dirs[task], clip, tmp_path / "out")
    assert (done.images, done.faults) == (4, [])
    assert frames_of(tmp_path / "out/pictures/clip.avi") == (4, 12.5)
    if task == "detection":
        images = read_json(tmp_path / "out/images.json")["images"]
        assert [(one["file_name"], one["frame"]) for one in images] == [
            ("clip.avi", i) for i in range(4)
        ]


def test_videos_that_end_early_or_are_none(work_dirs, clip, tmp_path):
    content = clip.read_bytes()
    clip.write_bytes(content[: content.rindex(b"00dc", 0, content.index(b"idx1"))])
    (tmp_path / "none.mp4").write_bytes(b"no video")
    inputs = [clip, tmp_path / "none.mp4"]
    done = hire_mlp_mm.predict(work_dirs["detection"], inputs, tmp_path / "out")
    assert done.faults[-1].startswith(f"{tmp_path / 'none.mp4'}: the video cannot be opened")
    assert done.images < 4
    assert files_of(tmp_path / "out/pictures") == ["clip.avi"]


# The numbers ------------------------------------------------------------------------------------


def test_the_hosts_functions_say_the_same(work_dirs, photographs):
    from mmdet.apis import inference_detector, init_detector
    from mmpretrain import ImageClassificationInferencer, get_model
    from mmseg.apis import inference_model, init_model

    def paths(task: str) -> tuple[str, str]:
        return str(work_dirs[task] / f"{task}.py"), str(work_dirs[task] / "iter_9.pth")

    image = photographs / "été 1/a.png"
    with DefaultScope.overwrite_default_scope("mmdet"):
        sample = inference_detector(init_detector(*paths("detection"), device="cpu"), str(image))
    (found,) = hire_mlp_mm.Predictor(work_dirs["detection"], score_thr=0)(image)
    theirs = sample.pred_instances
    torch.testing.assert_close(found.sample.pred_instances.scores, theirs.scores)
    torch.testing.assert_close(found.sample.pred_instances.bboxes, theirs.bboxes)
    with DefaultScope.overwrite_default_scope("mmseg"):
        sample = inference_model(init_model(*paths("segmentation"), device="cpu"), str(image))
    (found,) = hire_mlp_mm.Predictor(work_dirs["segmentation"])(image)
    np.testing.assert_array_equal(found.results, sample.pred_sem_seg.data[0].numpy())
    config, weights = paths("classification")
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        inferencer = ImageClassificationInferencer(get_model(config, weights))
        said = inferencer(str(image))[0]
    (found,) = hire_mlp_mm.Predictor(work_dirs["classification"])(image)
    assert found.results[0]["class"] == said["pred_class"]
    assert found.results[0]["score"] == pytest.approx(said["pred_score"], abs=1e-4)


@pytest.mark.parametrize("task", MODELS_OF)
def test_neither_batch_nor_form_changes_the_results(task, work_dirs, photographs):
    """Images of several sizes come out in their order, with the results that each has alone."""
    (photographs / "z/broken.jpg").unlink()
    options = THR if task == "detection" else {}
    alone = list(hire_mlp_mm.Predictor(work_dirs[task], **options)(photographs))
    for changed in (dict(batch_size=3), dict(fused=True), dict(batch_size=2, fused=True)):
        found = list(hire_mlp_mm.Predictor(work_dirs[task], **options, **changed)(photographs))
        assert [one.source.name for one in found] == GOOD
        for one, other in zip(found, alone, strict=True):
            if task == "detection":
                same(one.results, other.results, rtol=1e-3, atol=0.02)
            elif task == "segmentation":
                assert (one.results != other.results).mean() < 1e-3
            else:
                assert [r["class"] for r in one.results] == [r["class"] for r in other.results]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("task", MODELS_OF)
def test_bfloat16_is_near(task, fused, work_dirs, photographs):
    image = save(photographs / "large.png", 1, width=900, height=600)
    options = dict(score_thr=0) if task == "detection" else {}
    (plain,) = hire_mlp_mm.Predictor(work_dirs[task], **options)(image)
    options.update(dtype="bfloat16", fused=fused)
    predictor = hire_mlp_mm.Predictor(work_dirs[task], **options)
    seen = []
    predictor.model.backbone.stages[0].register_forward_hook(lambda *a: seen.append(a[2].dtype))
    (found,) = predictor(image)
    assert torch.bfloat16 in seen
    if task == "detection":
        best, other = found.sample.pred_instances, plain.sample.pred_instances
        assert best.scores.dtype == best.bboxes.dtype == torch.float32
        assert best.scores[0] == pytest.approx(float(other.scores[0]), abs=0.05)
        # No coordinate is rounded to bfloat16, which has steps of 4 from 512 on.
        assert (best.bboxes.bfloat16() != best.bboxes).any()
    elif task == "segmentation":
        assert (found.results == plain.results).mean() > 0.9
    else:
        assert found.results[0]["score"] == pytest.approx(plain.results[0]["score"], abs=0.05)


def test_chosen_classes(work_dirs, photographs):
    image = photographs / "a.png"
    name = CLASSES[2]
    (found,) = hire_mlp_mm.Predictor(work_dirs["detection"], classes=[name], score_thr=0)(image)
    assert {one["category_name"] for one in found.results} == {name}
    (whole,) = hire_mlp_mm.Predictor(work_dirs["segmentation"])(image)
    label = int(np.unique(whole.results)[0])
    (found,) = hire_mlp_mm.Predictor(work_dirs["segmentation"], classes=[CLASSES[label]])(image)
    np.testing.assert_array_equal(found.results == label, whole.results == label)
    assert set(np.unique(found.results)) <= {label, 255}
    (found,) = hire_mlp_mm.Predictor(work_dirs["classification"], classes=["c", "f"])(image)
    assert {one["class"] for one in found.results} == {"c", "f"}
    with pytest.raises(UserError, match="no class 'triangle'; near it: big triangle"):
        hire_mlp_mm.Predictor(work_dirs["detection"], classes=["triangle"])


# Odd images -------------------------------------------------------------------------------------


def turned(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter to the right
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


ODD = {
    "grey.png": lambda image, path: image.convert("L").save(path),
    "alpha.png": lambda image, path: image.convert("RGBA").save(path),
    "sixteen.png": lambda image, path: cv2.imwrite(
        str(path), np.asarray(image)[..., ::-1].astype(np.uint16) * 257
    ),
    "lossless.webp": lambda image, path: image.save(path, lossless=True),
    "scan.tif": lambda image, path: image.save(path),
    "ink.jpg": lambda image, path: image.convert("CMYK").save(path, quality=98),
    "turned.jpg": turned,
    "name without suffix": lambda image, path: image.save(path, "PNG"),
    "日本 100%.jpeg": lambda image, path: image.save(path, quality=98),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_are_read(name, work_dirs, tmp_path):
    plain = Image.fromarray(scene(1))
    ODD[name](plain, tmp_path / name)
    done = hire_mlp_mm.predict(work_dirs["detection"], tmp_path / name, tmp_path / "out", **THR)
    assert (done.images, done.faults) == (1, [])
    (picture,) = files_of(tmp_path / "out/pictures")
    assert picture.startswith(os.path.splitext(name)[0])
    assert Image.open(tmp_path / "out/pictures" / picture).size == plain.size
    (found,) = hire_mlp_mm.Predictor(work_dirs["detection"])(tmp_path / name)
    if name != "grey.png":
        assert np.abs(found.image.astype(int) - np.asarray(plain)).mean() < 12


def test_small_narrow_and_damaged_images(work_dirs, tmp_path):
    folder = tmp_path / "in"
    save(folder / "one.png", width=1, height=1)
    save(folder / "thin.png", width=2, height=700)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    Image.fromarray(scene(1)).save(folder / "unknown.gif")  # OpenCV's wheels read none
    whole = save(folder / "whole.png").read_bytes()
    (folder / "zz_cut.png").write_bytes(whole[:200])
    lines: list[str] = []
    done = hire_mlp_mm.predict(
        work_dirs["detection"], folder, tmp_path / "out", say=lines.append, **THR
    )
    assert all(line.count("\n") == 0 for line in done.faults)
    assert set(done.faults) < set(lines)
    named = {Path(line.partition(": ")[0].partition(" cannot")[0]).name for line in done.faults}
    assert {"empty.png", "text.jpg", "zz_cut.png"} <= named
    assert "whole.png" not in named
    assert done.images + len(done.faults) == 7


def test_an_image_on_which_the_model_fails(work_dirs, photographs, monkeypatch):
    predictor = hire_mlp_mm.Predictor(work_dirs["detection"], batch_size=3)
    forward = predictor.model.test_step

    def test_step(data):
        if any("b.jpg" in sample.img_path for sample in data["data_samples"]):
            raise RuntimeError("out of memory\nand more")
        return forward(data)

    monkeypatch.setattr(predictor.model, "test_step", test_step)
    said: list[DataError] = []
    found = [one.source.name for one in predictor(photographs, report=said.append)]
    assert found == ["a.png", "z/a.png", "été 1/a.png"]
    assert str(said[-1]).endswith("the model failed on it (128 x 85 pixels): "
                                  "RuntimeError: out of memory")  # fmt: skip
    with pytest.raises(DataError, match=r"b\.jpg: the model failed"):
        list(predictor(photographs / "b.jpg"))


# What is found ----------------------------------------------------------------------------------


def test_inputs(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(photographs)
    names = lambda *inputs: [one.name for one in find_inputs(inputs).sources]  # noqa: E731
    assert names("z/*.png", "a.png", "a.png") == ["z/a.png", "a.png"]
    assert names("**/a.png") == ["a.png", "z/a.png", "été 1/a.png"]
    assert names("z") == ["a.png", "broken.jpg"]
    save(photographs / "odd [1].png")
    assert names("odd [1].png") == ["odd [1].png"]
    (photographs / "z/round").symlink_to(photographs / "z")
    assert names("z") == ["a.png", "broken.jpg"]
    for wrong, line in {
        "gone.png": "not found: gone.png; expected an image, a video, a folder or a quoted",
        "*.tiff": r"no file matches \*\.tiff",
    }.items():
        with pytest.raises(UserError, match=line):
            names(wrong)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.xyz").write_text("")
    with pytest.raises(UserError, match=r"no images or videos in .*empty; passed over .*1 \.xyz"):
        names(str(tmp_path / "empty"))


def test_the_best_checkpoint_or_the_last(work_dirs, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(work_dirs["segmentation"], folder)
    assert hire_mlp_mm.Predictor(folder).checkpoint == str(folder / "iter_9.pth")
    for i, name in enumerate(("best_mIoU_iter_7.pth", "best_aAcc_iter_8.pth")):
        shutil.copy(folder / "iter_9.pth", folder / name)
        os.utime(folder / name, (i, i))
    assert hire_mlp_mm.Predictor(folder).checkpoint == str(folder / "best_aAcc_iter_8.pth")
    for file in folder.glob("*.pth"):
        file.unlink()
    with pytest.raises(UserError, match="has no checkpoint, neither best_"):
        hire_mlp_mm.Predictor(folder)


def test_the_config_beside_the_checkpoint(work_dirs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(work_dirs["segmentation"], folder)
    (folder / "evil.py").write_text("raise SystemExit('was run')")
    (folder / "evil.py").rename(folder / "a_program.py")
    predictor = hire_mlp_mm.Predictor(folder / "iter_9.pth")
    assert predictor.config == str(folder / "segmentation.py")
    shutil.copy(folder / "segmentation.py", folder / "other.py")
    with pytest.raises(UserError, match=r"2 configs are beside .* \(other.py, segmentation.py\)"):
        hire_mlp_mm.Predictor(folder)
    assert hire_mlp_mm.Predictor(folder, folder / "other.py").classes == list(CLASSES)
    for file in folder.glob("*.py"):
        file.unlink()
    with pytest.raises(UserError, match=r"no config is beside .*; name the one of this model"):
        hire_mlp_mm.Predictor(folder)


@pytest.fixture
def several_tasks(work_dirs, tmp_path) -> tuple[Path, Path]:
    """The checkpoint and the config of a classifier with two heads."""
    cfg = Config.fromfile(work_dirs["classification"] / "classification.py")
    tasks = dict(colour=cfg.model.head, shape=cfg.model.head)
    cfg.model.head = dict(type="MultiTaskHead", task_heads=tasks)
    cfg.dump(tmp_path / "tasks.py")
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / "tasks.pth")
    return tmp_path / "tasks.pth", tmp_path / "tasks.py"


@pytest.mark.parametrize("command", [hire_mlp_mm.predict, explain])
def test_a_head_for_each_of_several_tasks(command, several_tasks, photographs, tmp_path):
    pytest.importorskip("torchcam")
    checkpoint, config = several_tasks
    with pytest.raises(UserError, match=r"MultiTaskHead has several .*\(colour, shape\)"):
        command(checkpoint, photographs, tmp_path / "out", config=config)
    with pytest.raises(UserError, match="MultiTaskHead has several"):
        hire_mlp_mm.Predictor(checkpoint, config)


def test_heads_do_not_matter_to_receptive_fields(several_tasks, photographs, tmp_path):
    checkpoint, config = several_tasks
    done = compare_fields(
        checkpoint,
        photographs / "a.png",
        tmp_path / "out",
        against=[str(checkpoint)],
        config=config,
    )
    assert [one.stride for one in done.fields["tasks"]]


def test_names_of_a_checkpoint_that_has_none(work_dirs, tmp_path):
    config = work_dirs["detection"] / "detection.py"
    state = torch.load(work_dirs["detection"] / "iter_9.pth")["state_dict"]
    torch.save(state, tmp_path / "plain.pth")
    predictor = hire_mlp_mm.Predictor(tmp_path / "plain.pth", config)
    assert predictor.classes == ["circle", "square", "triangle"]  # of the config's data set
    options = {"test_dataloader.dataset.metainfo": dict(classes=("one",))}
    predictor = hire_mlp_mm.Predictor(tmp_path / "plain.pth", config, cfg_options=options)
    assert predictor.classes == ["one", "class 1", "class 2"]
    options = {"test_dataloader.dataset.metainfo": None}
    predictor = hire_mlp_mm.Predictor(tmp_path / "plain.pth", config, cfg_options=options)
    assert predictor.classes[:2] == ["person", "bicycle"]  # of the data set's class
    assert len(predictor.palette) == len(predictor.classes)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (dict(batch_size=0), "batch size 0"),
        (dict(device="cuda:77"), "device cuda:77 cannot be used"),
        (dict(dtype="int8"), "dtype int8: expected one of auto, bfloat16, float16"),
        (dict(dtype="float16", device="cpu"), "float16 on a CPU: expected bfloat16"),
        (dict(config="nobody"), "config nobody not found"),
        (dict(config="upernet_hire_t_ade20k"), r"iter_9\.pth is a network with depths"),
    ],
)
def test_wrong_arguments(options, line, work_dirs, photographs, tmp_path):
    with pytest.raises(UserError, match=line):
        hire_mlp_mm.predict(work_dirs["segmentation"], photographs, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_score_threshold_is_for_detectors(work_dirs):
    with pytest.raises(UserError, match="a score threshold is for detectors"):
        hire_mlp_mm.Predictor(work_dirs["segmentation"], score_thr=0.5)


# Files ------------------------------------------------------------------------------------------


def test_nothing_is_overwritten(work_dirs, photographs, tmp_path):
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        hire_mlp_mm.predict(work_dirs["detection"], photographs, photographs)
    with pytest.raises(UserError, match="is a file; name a new folder"):
        hire_mlp_mm.predict(work_dirs["detection"], photographs, photographs / "a.png")
    (tmp_path / "empty").mkdir()
    done = hire_mlp_mm.predict(work_dirs["detection"], photographs, tmp_path / "empty")
    assert done.images == 4


def test_names_that_meet():
    names = Names(Path("out"))
    given = ["a.jpg", "a.png", "A.tif", "a.tif.png", "b/a.jpg"]
    made = [str(names.path(name, ".png")) for name in given]
    assert made[:2] == ["out/a.png", "out/a.png.png"]
    assert len({name.lower() for name in made}) == len(given)


@pytest.mark.parametrize("task", MODELS_OF)
def test_ctrl_c_leaves_whole_files(task, work_dirs, photographs, clip, tmp_path):
    def interrupted(found, total):
        assert total == 5 + 4
        for count, one in enumerate(found):
            if count == 6:  # in the video
                raise KeyboardInterrupt
            yield one

    with pytest.raises(KeyboardInterrupt):
        hire_mlp_mm.predict(
            work_dirs[task], [photographs, clip], tmp_path / "out", track=interrupted
        )
    files = files_of(tmp_path / "out")
    assert not [name for name in files if ".part" in name or name == "pictures/clip.avi"]
    for name in files:
        if name.endswith((".png", ".jpg")):
            Image.open(tmp_path / "out" / name).load()
    if task == "detection":
        assert len(read_json(tmp_path / "out/images.json")["images"]) == 6
    if task == "classification":
        assert len((tmp_path / "out/predictions.csv").read_text().splitlines()) == 1 + 6 * 5


def test_colours():
    assert palette_for([(1, 2, 3)] * 3, 3) == [(1, 2, 3)] * 3
    assert palette_for(((1, 2, 3),), 2) == palette_for("random", 2) == colours(2)
    many = colours(150)
    assert len(set(many)) == 150
    assert all(0 <= value <= 255 for colour in many for value in colour)
