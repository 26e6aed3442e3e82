"""Is the demo's data set true, and does the demo run from data to pictures?"""

import json
from pathlib import Path

import demo
import numpy as np
import pytest
import shapes
from PIL import Image
from pycocotools.coco import COCO


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write_shapes(folder, train=12, val=6)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("split", shapes.SPLITS)
class Test_written_truth:
    def test_masks_agree_with_boxes_areas_and_the_semantic_map(self, folder, split):
        truth = COCO(folder / "annotations" / f"instances_{split}.json")
        assert [c["name"] for c in truth.loadCats(truth.getCatIds())] == list(shapes.CLASSES)
        for image in truth.loadImgs(truth.getImgIds()):
            from_masks = np.zeros((image["height"], image["width"]), int)
            records = truth.loadAnns(truth.getAnnIds(image["id"]))
            assert 1 <= len(records) <= 5
            for record in records:
                mask = truth.annToMask(record).astype(bool)
                rows, columns = np.nonzero(mask)
                x, y = columns.min(), rows.min()
                size = columns.max() + 1 - x, rows.max() + 1 - y
                assert record["bbox"] == [x, y, *size]
                assert record["area"] == mask.sum() > 50
                assert not from_masks[mask].any()  # no pixel belongs to two
                from_masks[mask] = record["category_id"]
            name = Path(image["file_name"]).stem
            written = Image.open(folder / "annotations" / split / f"{name}.png")
            np.testing.assert_array_equal(from_masks, np.asarray(written))

    def test_each_listed_image_is_there(self, folder, split):
        listed = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        there = sorted(path.name for path in (folder / "images" / split).iterdir())
        assert there == [image["file_name"] for image in listed["images"]]
        with Image.open(folder / "images" / split / there[0]) as image:
            assert image.size == (128, 128)


def test_equal_seeds_give_equal_files_and_others_do_not(folder, tmp_path):
    shapes.write_shapes(tmp_path / "same", train=12, val=6)
    shapes.write_shapes(tmp_path / "other", train=12, val=6, seed=1)
    ours = files_of(folder)
    assert files_of(tmp_path / "same") == ours
    other = files_of(tmp_path / "other")
    assert all(other[name] != data for name, data in ours.items() if name.endswith(".jpg"))


def test_training_and_validation_images_differ(folder):
    images = [data for name, data in files_of(folder).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images) == 18


def test_the_truth_is_what_is_visible():
    overlaps = 0
    for seed in range(60):
        scene = shapes.draw_scene(np.random.default_rng(seed))
        assert scene.masks.any(axis=(1, 2)).all()
        assert (scene.masks.sum(axis=0) <= 1).all()
        for mask in scene.masks:
            # Inside of a mask there is one flat colour, but for noise: nothing else covers it.
            assert scene.image[shrink(mask)].std(axis=0).max() < 15
            rows, columns = np.nonzero(mask)
            box = scene.masks[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            overlaps += box.any(axis=(1, 2)).sum() > 1
    assert overlaps > 30  # or the test saw no occlusion


def shrink(mask: np.ndarray) -> np.ndarray:
    """A mask without the pixels at its edge."""
    around = np.pad(mask, 1)
    return mask & around[2:, 1:-1] & around[:-2, 1:-1] & around[1:-1, 2:] & around[1:-1, :-2]


class Test_output_folder:
    def test_replaces_what_the_demo_made_and_keeps_the_rest(self, tmp_path):
        demo.make_room(tmp_path)
        for name in ("data/images/x.jpg", "detection/train.log", "results.json", "mine/notes.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("x")
        demo.make_room(tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {demo.MARK, "mine"}

    def test_refuses_a_folder_of_somebody_else(self, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "precious").write_text("x")
        with pytest.raises(demo.DemoError, match="was not made by the demo"):
            demo.make_room(tmp_path)
        assert (tmp_path / "data" / "precious").exists()

    def test_does_not_follow_a_link(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "precious").write_text("x")
        out = tmp_path / "out"
        demo.make_room(out)
        (out / "data").symlink_to(tmp_path / "elsewhere")
        demo.make_room(out)
        assert (tmp_path / "elsewhere" / "precious").exists()
        assert not (out / "data").exists()


def test_a_failing_tool_is_one_line_that_names_the_log(tmp_path):
    log = tmp_path / "train.log"
    command = ["-c", "print('first'); raise SystemExit('no such thing')"]
    with pytest.raises(demo.DemoError) as caught:
        list(demo.run_tool("training X", command, tmp_path, log, tmp_path))
    assert str(caught.value) == f"training X failed (no such thing); the whole log is {log}"


@pytest.mark.slow
@pytest.mark.timeout(900)  # four starts of OpenMMLab: 70 s of one core, and cores may be busy
def test_runs_from_data_to_pictures(tmp_path, run_tool):
    run = run_tool("tools/demo.py", "--quick", "--out", tmp_path, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    names = {"box AP", "box AP50", "mask AP", "mask AP50", "mIoU"}
    assert names <= set(results)
    assert all(0 <= results[name] <= 1 for name in names)
    for name in ("predictions.png", "curves.png"):
        assert str(tmp_path / name) in run.stdout.replace("\n", "")
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
