"""Are the predictions of a test drawn into files of their own, for any host and classes?"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from PIL import Image

from hire_mlp_mm import register_if_possible
from hire_mlp_mm.engine.options import draw_predictions
from hire_mlp_mm.engine.pictures import PicturesHook
from hire_mlp_mm.errors import UserError

register_if_possible()
CLASSES = 100  # more than COCO's palette has colours
KINDS = dict(
    mmdet="DetLocalVisualizer", mmseg="SegLocalVisualizer", mmpretrain="UniversalVisualizer"
)


def prediction(host: str, path: str | None) -> Any:
    """A data sample whose prediction is the last class."""
    metainfo = dict(img_path=path) if path else {}
    if host == "mmdet":
        from mmdet.structures import DetDataSample

        boxes = InstanceData(
            bboxes=torch.tensor([[2.0, 2.0, 20.0, 20.0]]),
            labels=torch.tensor([CLASSES - 1]),
            scores=torch.tensor([0.9]),
        )
        return DetDataSample(metainfo=metainfo, pred_instances=boxes)
    if host == "mmseg":
        from mmseg.structures import SegDataSample

        labels = PixelData(data=torch.full((1, 24, 32), CLASSES - 1))
        return SegDataSample(metainfo=metainfo, pred_sem_seg=labels)
    from mmpretrain.structures import DataSample

    return DataSample(metainfo=metainfo).set_pred_label(CLASSES - 1)


def run(host: str, hook: PicturesHook, paths: list[Any], palette: Any) -> None:
    """A test of a host whose data set has images at these paths."""
    with DefaultScope.overwrite_default_scope(host):
        name = f"{host}{id(paths)}"
        visualizer = VISUALIZERS.build(dict(type=KINDS[host], name=name))
    visualizer.dataset_meta = dict(classes=[f"c{i}" for i in range(CLASSES)], palette=palette)
    dataset = [dict(img_path=path) for path in paths]
    data = type("Data", (list,), dict(get_data_info=list.__getitem__))(dataset)
    loader = SimpleNamespace(dataset=data)
    runner: Any = SimpleNamespace(visualizer=visualizer, test_dataloader=loader)
    hook.before_test(runner)
    for i, path in enumerate(paths):
        inputs = torch.full((1, 3, 24, 32), 100, dtype=torch.uint8)
        hook.after_test_iter(runner, i, dict(inputs=inputs), [prediction(host, path)])


@pytest.mark.parametrize("host", KINDS)
@pytest.mark.parametrize("palette", [None, [(0, 0, 0)] * 80, "random", "whole"])
def test_images_of_one_name_are_drawn_apart(host, palette, tmp_path, monkeypatch):
    palette = [(i, i, i) for i in range(CLASSES)] if palette == "whole" else palette
    paths = [tmp_path / "data" / name for name in ("a/0.jpg", "b/deep/0.jpg", "b/1.png")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (200, 10, 10)).save(path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(host, PicturesHook(str(tmp_path / "out")), list(map(str, paths)), palette)
    made = {path.relative_to(tmp_path / "out").as_posix() for path in files(tmp_path / "out")}
    assert made == {"a/0.jpg", "b/deep/0.jpg", "b/1.png"}
    assert files(tmp_path / "here") == []
    assert len(files(tmp_path / "data")) == 3
    picture = np.asarray(Image.open(tmp_path / "out/b/1.png").convert("RGB"), dtype=int)
    if host == "mmpretrain":  # large enough for a line of text, in the colours of the file
        assert picture.shape[0] >= 224
        assert picture[-1, -1, 0] > 100 > picture[-1, -1, 2]


def files(folder: Any) -> list[Any]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_images_without_a_file_are_numbered(tmp_path):
    run("mmpretrain", PicturesHook(str(tmp_path)), [None, None], None)
    assert {path.name for path in files(tmp_path)} == {"0.png", "1.png"}


@pytest.mark.parametrize("host", KINDS)
def test_pictures_go_into_a_new_folder(host, tmp_path):
    cfg = Config(dict(default_scope=host))
    draw_predictions(cfg, str(tmp_path))  # empty
    assert cfg.visualizer.type == KINDS[host]
    assert cfg.custom_hooks[0]["folder"] == str(tmp_path)
    (tmp_path / "0.jpg").touch()
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        draw_predictions(cfg, str(tmp_path))
