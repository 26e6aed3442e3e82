"""Does a run say which data file is wrong, and count what it skips?"""

from __future__ import annotations

import copy
import io
import json
import pickle
import shutil
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from shapes import write_shapes
from torch import nn

from hire_mlp_mm import cli, disk
from hire_mlp_mm.engine import batches
from hire_mlp_mm.engine.guarded import base as guarded
from hire_mlp_mm.engine.harden import harden_dataset, harden_evaluators, harden_loader
from hire_mlp_mm.errors import DataError, UserError
from hire_mlp_mm.hire_mlp import HireMLPNet
from tests.conftest import NANO, ROOT

DETECTION = "configs/cascade_mask_rcnn_hire_nano_shapes.py"
SEGMENTATION = "configs/upernet_hire_nano_shapes.py"
IMAGE = "images/training/00001.jpg"
MASK = "annotations/training/00001.png"
COCO = "annotations/instances_training.json"
SIZE = 64


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=4, val=2, size=SIZE)
    return folder


@pytest.fixture
def data(shapes, tmp_path) -> Path:
    """A data set of the test's own."""
    shutil.copytree(shapes, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def configs() -> dict[str, Config]:
    return {"mmdet": Config.fromfile(DETECTION), "mmseg": Config.fromfile(SEGMENTATION)}


@pytest.fixture
def load(configs, data):
    """Build a host's data loader on the training images, as a hardened config does."""

    def load(
        host: str,
        test: bool = False,
        guarded: bool = True,
        num_batch_per_epoch: int | None = None,
        **settings: object,
    ):
        init_default_scope(host)
        loader = copy.deepcopy(configs[host].train_dataloader)
        loader.num_batch_per_epoch = num_batch_per_epoch
        loader.update(batch_size=2, sampler=dict(type="DefaultSampler", shuffle=False))
        if test:
            loader.dataset.test_mode = True
            loader.dataset.pipeline = configs[host].test_dataloader.dataset.pipeline
        loader.dataset.update(data_root=str(data), **settings)
        if guarded:
            harden_loader(loader, training=False)
        return Runner.build_dataloader(loader, seed=0)

    return load


def change_image(path: str, change, kind: str = "JPEG"):
    def fault(data: Path) -> None:
        image = change(Image.open(data / path).copy())
        image.save(data / path, kind)

    return fault


def change_bytes(path: str, change):
    def fault(data: Path) -> None:
        (data / path).write_bytes(change((data / path).read_bytes()))

    return fault


def change_coco(change):
    def fault(data: Path) -> None:
        content = json.loads((data / COCO).read_text())
        changed = change(content)
        (data / COCO).write_text(json.dumps(content if changed is None else changed))

    return fault


def widen_labels(data: Path) -> None:
    labels = np.asarray(Image.open(data / MASK)).astype(np.uint16)
    Image.fromarray(labels + 256).save(data / MASK)


def turn(data: Path) -> None:
    """Have EXIF turn an image whose annotations are for the image as it is stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(data / IMAGE, exif=exif)

    def resize(content: dict) -> None:
        for image in content["images"]:
            if image["file_name"] == Path(IMAGE).name:
                image.update(width=48, height=64)
        for annotation in content["annotations"]:
            annotation["segmentation"] = [[1, 1, 9, 1, 9, 9]]

    change_coco(resize)(data)


half = change_bytes(IMAGE, lambda content: content[: len(content) * 9 // 10])
small = change_image(IMAGE, lambda image: image.resize((32, 32)))
IMAGE_FAULTS = {
    "truncated": (half, f"{IMAGE}: the JPEG is truncated"),
    "empty": (change_bytes(IMAGE, lambda _: b""), f"{IMAGE}: the file is empty"),
    "text": (change_bytes(IMAGE, lambda _: b"hello"), f"{IMAGE}: the image cannot be decoded"),
}
FAULTS = {
    **{f"{name} {host}": (host, *IMAGE_FAULTS[name])
       for name in IMAGE_FAULTS for host in ("mmdet", "mmseg")},
    "no image": ("mmdet", lambda data: (data / IMAGE).unlink(), f"{IMAGE} not found"),
    "image of another size": (
        "mmdet", small,
        f"{IMAGE}: the image is read as 32 x 32 pixels, and its annotations are for 64 x 64; give",
    ),
    "image that EXIF turns": (
        "mmdet", turn,
        f"{IMAGE}: the image is read as 64 x 48 pixels (turned as its EXIF says), and its "
        "annotations are for 48 x 64; set LoadImageFromFile(color_type='color_ignore_orientation')",
    ),
    "map of another size": (
        "mmseg", change_image(MASK, lambda image: image.resize((32, 32)), "PNG"),
        f"{MASK} is read with the shape (32, 32); expected (64, 64) as the image",
    ),
    "colour map": (
        "mmseg", change_image(MASK, lambda image: image.convert("RGB"), "PNG"),
        f"{MASK} is read with the shape (64, 64, 3); expected (64, 64)",
    ),
    "label": (
        "mmseg", change_image(MASK, lambda image: image.point(lambda v: v or 7), "PNG"),
        "pixels; expected 0 to 3, or 255 for pixels to ignore",
    ),
    "16-bit label": ("mmseg", widen_labels, f"{MASK} has the label 25"),
    "empty map": (
        "mmseg", change_bytes(MASK, lambda _: b""), f"{MASK}: the file is empty"
    ),
    "no map": ("mmseg", lambda data: (data / MASK).unlink(), f"{MASK} not found"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_file_is_named_in_one_line(fault, load, data):
    host, do, message = FAULTS[fault]
    do(data)
    for test in (False, True):
        with pytest.raises(DataError) as raised:
            list(load(host, test))
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
        assert str(data) in str(raised.value)


@pytest.mark.parametrize("host", ["mmdet", "mmseg"])
@pytest.mark.parametrize("test", [False, True], ids=["train", "test"])
def test_honest_data_are_the_hosts(host, test, load):
    np.random.seed(0)
    plain = list(load(host, test, guarded=False))
    np.random.seed(0)
    for ours, theirs in zip(load(host, test), plain, strict=True):
        for one, other in zip(ours["inputs"], theirs["inputs"], strict=True):
            assert torch.equal(one, other)
        for one, other in zip(ours["data_samples"], theirs["data_samples"], strict=True):
            assert one.img_path == other.img_path
            for mine, its in zip(truth(one), truth(other), strict=True):
                assert np.array_equal(mine, its)


def truth(sample) -> list:
    """What a data sample says of its image, as arrays."""
    if "gt_sem_seg" in sample:
        return [sample.gt_sem_seg.data]
    found = sample.gt_instances
    return [found.bboxes.tensor, found.labels, found.masks.masks]


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_kinds_of_images_become_8_bit_bgr(rng):
    """OpenCV's conventions, which the hosts' figures are made with; none of them is refused."""
    colours = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    image = Image.fromarray(colours)
    read = mmcv.imfrombytes
    grey = image.convert("L")
    assert (read(encode(grey)) == np.asarray(grey)[..., None]).all()
    alpha = Image.fromarray(rng.integers(0, 256, (64, 64)).astype(np.uint8))
    rgba = image.copy()
    rgba.putalpha(alpha)
    assert (read(encode(rgba))[..., ::-1] == colours).all()  # alpha is dropped
    wide = rng.integers(0, 65536, (64, 64)).astype(np.uint16)
    assert (read(encode(Image.fromarray(wide)))[..., 0] == wide >> 8).all()
    cmyk = read(encode(image.convert("CMYK"), "JPEG", quality=95)).astype(int)
    assert abs(cmyk[..., ::-1] - colours).mean() < 3
    rotated = Image.Exif()
    rotated[0x112] = 6
    assert read(encode(image.crop((0, 0, 64, 32)), "JPEG", exif=rotated)).shape == (64, 32, 3)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("progressive", [False, True])
def test_every_truncation_of_a_jpeg_is_seen(progressive, rng):
    """OpenCV before 4.11 fills what is missing with grey, and says nothing."""
    image = Image.fromarray(rng.integers(0, 256, (48, 48, 3)).astype(np.uint8))
    thumbnail = encode(image.resize((16, 16)), "JPEG")
    exif = b"Exif\0\0" + thumbnail
    whole = encode(image, "JPEG", progressive=progressive, exif=exif, restart_marker_rows=1)
    assert disk.has_end(whole)
    assert disk.has_end(whole + b"\xff\xda after the end")
    for length in range(2, len(whole) - 1):
        assert not disk.has_end(whole[:length]), length


@pytest.mark.parametrize("size", [(1, 1), (8000, 30), (30, 8000)])
def test_images_of_odd_sizes(size, load, data):
    """They are read; where a step cannot take them, the line says which."""
    width, height = size
    change_image(IMAGE, lambda image: image.resize(size))(data)
    change_image(MASK, lambda image: image.resize(size, 0), "PNG")(data)

    def change(content: dict) -> None:
        content["images"][1].update(width=width, height=height)
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 1]

    change_coco(change)(data)
    loader = load("mmdet")
    steps = loader.dataset.pipeline.transforms
    # A flipped pixel cannot be packed, another of the host's limits.
    steps[:] = [one for one in steps if type(one).__name__ not in ("RandomFlip", "Resize")]
    assert second_shape(loader) == (3, height, width)
    if size == (1, 1):
        assert second_shape(load("mmdet", test=True)) == (3, 128, 128)
        with pytest.raises(DataError, match=r"00001.png is read with the shape \(\)"):
            list(load("mmseg"))
    else:
        with pytest.raises(DataError, match=f"Resize of an image of {width} x {height}"):
            list(load("mmdet", test=True))
        assert second_shape(load("mmseg")) == (3, height, width)


def second_shape(loader) -> tuple[int, ...]:
    return tuple(next(iter(loader))["inputs"][1].shape)


class Picky(nn.Module):
    """A model that takes no image."""

    def forward(self, inputs):
        raise ValueError("no valid anchor\nmore")


@pytest.mark.parametrize("in_model", [True, False])
def test_a_model_that_fails_names_its_images(in_model, load):
    """In a line of the log in any case, and in the error within `one_line_errors`."""

    class Model(Runner):
        """Of a runner, what is needed to call hooks around a step that fails."""

        logger = MMLogger.get_instance("model", log_level="ERROR")

        def __init__(self) -> None:
            self._hooks, self.model = [batches.BatchHook()], Picky()

        def run(self, batch: dict) -> None:
            self.call_hook("before_run")
            self.call_hook("before_train_iter", batch_idx=0, data_batch=batch)
            if not in_model:
                self.call_hook("after_train_iter", batch_idx=0, data_batch=batch)
            self.model(batch["inputs"])

    said: list[str] = []
    Model.logger.error = said.append
    batch = next(iter(load("mmseg")))
    kind = DataError if in_model else ValueError
    with pytest.raises(kind) as raised, batches.one_line_errors(model := Model()):
        model.run(batch)
    if in_model:
        line = str(raised.value)
        assert line.startswith("the model failed with ValueError: no valid anchor; the batch was /")
        assert "training/00000.jpg (64 x 64), /" in line
        assert line.endswith("training/00001.jpg (64 x 64)")
        assert said[0].startswith("the model failed with the error that follows; the batch was /")
    else:
        assert "no valid anchor" in str(raised.value)
        assert not said


def test_maps_of_other_channels_are_told_where_a_model_fails():
    """They are what mostly makes a model fail that a person has put together."""
    model = nn.Module()
    model.backbone, model.neck = HireMLPNet(NANO, out_indices=(0, 1)), nn.Module()
    model.neck.in_channels = [8, 12]
    assert not list(batches.other_channels(model))
    model.neck.in_channels = [8, 12, 16]
    assert list(batches.other_channels(model)) == [
        "the backbone gives it [8, 12] channels: set model.neck.in_channels, now [8, 12, 16]"
    ]
    model.neck = None
    model.decode_head = nn.Module()
    model.decode_head.in_channels, model.decode_head.in_index = 12, 1
    assert not list(batches.other_channels(model))
    model.decode_head.in_index = 0
    assert "set model.decode_head.in_channels, now [12]" in next(batches.other_channels(model))


def test_each_process_names_its_own_images(monkeypatch, capsys):
    """The first of a machine speaks for all, but of the others' images it knows nothing."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    for error in (UserError("config not found"), DataError("a.jpg: truncated")):
        for rank in "01":
            monkeypatch.setenv("LOCAL_RANK", rank)
            with pytest.raises(SystemExit) as stop:
                cli.run(lambda error=error: raised(error), "train.py")
            assert stop.value.code == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "train.py: error: config not found"
    assert others == ["train.py: error: a.jpg: truncated"] * 2


def raised(error: Exception) -> None:
    raise error


def test_unreadable_images_that_the_config_replaces_are_counted(load, data, monkeypatch):
    """`ignore_empty` is the hosts' own way to go on; without an image left there is an end."""
    half(data)
    lines = []
    monkeypatch.setattr(guarded, "print_log", lambda line, **_: lines.append(line))
    pipeline = [dict(type="LoadImageFromFile", ignore_empty=True), dict(type="PackSegInputs")]
    loader = load("mmseg", pipeline=pipeline)
    assert sum(len(batch["inputs"]) for batch in loader) == 4
    assert sum("JPEG is truncated; replaced by another image (1 times" in one for one in lines) == 1
    for path in (data / "images/training").iterdir():
        path.write_bytes(b"")
    loader = load("mmseg", pipeline=pipeline, max_refetch=5)
    with pytest.raises(DataError, match="has refused 6 images in a row"):
        list(loader)


def test_missing_images_are_replaced_where_the_config_wants_that(load, data):
    (data / IMAGE).unlink()
    pipeline = [dict(type="LoadImageFromFile", ignore_empty=True), dict(type="PackDetInputs")]
    pipeline[1]["meta_keys"] = ()
    loader = load("mmdet", pipeline=pipeline)
    assert sum(len(batch["inputs"]) for batch in loader) == 4


@pytest.mark.parametrize("named", ["backend_args", "file_client_args"])
def test_a_local_backend_that_is_named_reads_whole_images_too(named, load, data):
    half(data)
    backend = dict(backend="local" if named == "backend_args" else "disk")
    pipeline = [dict(type="LoadImageFromFile", **{named: backend}), dict(type="PackSegInputs")]
    with pytest.raises(DataError, match=f"{IMAGE}: the JPEG is truncated"):
        list(load("mmseg", pipeline=pipeline))


def test_within_other_data_sets_and_processes(load, data):
    half(data)
    part = load("mmseg", num_batch_per_epoch=1)
    with pytest.raises(DataError, match=f"{IMAGE}: the JPEG is truncated"):
        list(part)
    dataset = load("mmseg").dataset
    again = pickle.loads(pickle.dumps(dataset))  # as for a worker that is not a fork
    with pytest.raises(DataError, match="truncated"):
        again[1]
    init_default_scope("mmseg")
    plain = dict(type="BaseSegDataset", data_root=str(data), data_prefix=dict(
        img_path="images/training", seg_map_path="annotations/training"
    ), pipeline=[dict(type="TestTimeAug", transforms=[
        [dict(type="LoadImageFromFile")], [dict(type="LoadAnnotations")]
    ])])  # fmt: skip
    cfg = dict(type="RepeatDataset", times=2, dataset=dict(type="ConcatDataset", datasets=[plain]))
    harden_dataset(cfg := ConfigDict(cfg))
    loader = Runner.build_dataloader(
        dict(dataset=cfg, sampler=dict(type="DefaultSampler"), num_workers=1, batch_size=1)
    )
    with pytest.raises(DataError) as raised:
        list(loader)
    assert str(raised.value) == f"{data / IMAGE}: the JPEG is truncated"
    assert DATASETS.build(dict(plain, pipeline=[]))  # without guards


def test_an_evaluator_names_its_file(tmp_path):
    init_default_scope("mmdet")
    (tmp_path / "truth.json").write_text("{")
    config = dict(type="CocoMetric", ann_file=str(tmp_path / "truth.json"), metric="bbox")
    harden_evaluators(config)
    with pytest.raises(DataError, match=r"truth.json cannot be read: JSONDecodeError"):
        Evaluator(config)


@pytest.mark.timeout(600)
def test_the_tools_say_it(data, tmp_path, fork_tool):
    """Training, with workers, and testing."""
    init_default_scope("mmseg")
    config = Config.fromfile(SEGMENTATION)
    model = MODELS.build(config.model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    FAULTS["label"][1](data)
    (data / "images/validation").rename(data / "images/old")
    (data / "annotations/validation").rename(data / "annotations/old")
    shutil.copytree(data / "images/training", data / "images/validation")
    shutil.copytree(data / "annotations/training", data / "annotations/validation")
    env = {"SHAPES_ROOT": str(data)}
    for name, args, message in (
        ("train", ["train_dataloader.num_workers=1"], FAULTS["label"][2]),
        ("test", ["test_dataloader.num_workers=1"], FAULTS["label"][2]),
    ):
        extra = [tmp_path / "model.pth"] if name == "test" else []
        command = [ROOT / f"tools/{name}.py", SEGMENTATION, *extra, "--work-dir", tmp_path / name]
        done = fork_tool(*command, "--cfg-options", *args, env=env)
        assert done.returncode == 2, done.stderr[-2000:]
        assert "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"{name}.py: error: {data}/annotations/")
        assert message in last
