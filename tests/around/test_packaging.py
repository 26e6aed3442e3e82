"""Do the archives hold what they must, and does the wheel work where no checkout is?"""

from __future__ import annotations

import email
import json
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.hub import get_config
from shapes import write_shapes

from tests.conftest import ROOT

UV = Path(sys.executable).with_name("uv")
BY_NAME = "hire_mlp_mm::cascade_mask_rcnn_hire_s_coco.py"
MINE = """
_base_ = "hire_mlp_mm::cascade_mask_rcnn_hire_nano_shapes.py"
train_cfg = dict(max_iters=1, val_interval=2)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
default_hooks = dict(logger=dict(interval=1))
work_dir = "mim"
"""
PREDICT = """
import sys
import hire_mlp_mm
print(hire_mlp_mm.__file__)
from mmdet.apis import DetInferencer
inferencer = DetInferencer(weights=sys.argv[1], device="cpu", show_progress=False)
found = inferencer(sys.argv[2], no_save_vis=True)["predictions"][0]
print()
print(len(found["labels"]))
"""


def run(*command: object, **options) -> str:
    """The output of a command that succeeds."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """A wheel and the source archive that it was built from."""
    folder = tmp_path_factory.mktemp("dist")
    run(
        UV, "build", "--offline", "--no-build-isolation", "--python", sys.executable,
        "--out-dir", folder, ROOT,
    )  # fmt: skip
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory) -> tuple[Path, Path]:
    """Python of a new environment with the wheel, and where the wheel is; the rest is borrowed."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin/python"
    run(UV, "pip", "install", "--offline", "--no-deps", "--python", python, archives[0])
    (site,) = folder.glob("lib/python*/site-packages")
    # The stack's packages come after the environment's own; .pth files among them are not read, so
    # the checkout, installed there in editable mode, is out of reach.
    (site / "stack.pth").write_text(sysconfig.get_path("purelib"))
    return python, site


@pytest.mark.skipif(
    not (Path(sys.prefix) / "setup_env.json").exists(), reason="an environment of another maker"
)
def test_a_clone_in_the_working_folder_hides_nothing(tmp_path):
    """Its folder has the package's name, and would pass for a package without files."""
    (tmp_path / "hire_mlp_mm/hire_mlp_mm").mkdir(parents=True)
    said = run(
        sys.executable, "-c", "import hire_mlp_mm; print(hire_mlp_mm.HireMLPNet)", cwd=tmp_path
    )
    assert "HireMLPNet" in said


def test_wheel(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    # `.mim` in it holds links
    package = [p for p in (ROOT / "hire_mlp_mm").rglob("*.py") if ".mim" not in p.parts]
    shipped = [ROOT / "model-index.yml", *package]
    shipped += [ROOT / "hire_mlp_mm/py.typed", ROOT / "hire_mlp_mm/deploy/matrix.json"]
    shipped += [*(ROOT / "tools").glob("*.*"), *(ROOT / "configs").glob("*.*")]
    shipped += (ROOT / "configs/_base_").glob("*.py")
    expected = {}
    for path in shipped:
        name = path.relative_to(ROOT).as_posix()
        inside = name if name.startswith("hire_mlp_mm/") else f"hire_mlp_mm/.mim/{name}"
        expected[inside] = path.read_bytes()
    assert files.keys() == expected.keys()
    assert files == expected
    maintainers = {path.name for path in (ROOT / "dev").glob("*.py")}
    assert {"chaos.py", "setup_env.py"} <= maintainers  # the test looks where they are
    assert not maintainers & {Path(name).name for name in files}
    required = [one for one in metadata.get_all("Requires-Dist") if "extra ==" not in one]
    assert required == ["torch"]


def test_source_archive_holds_every_file(archives):
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    with tarfile.open(archives[1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    left_out = {name for name in tracked - held if not name.startswith(".git")}
    assert not left_out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_trains_tests_and_predicts_without_a_checkout(installed, tmp_path):
    """A recipe by its name, and a config of the user's by `mim`; then the host's inference."""
    python, site = installed
    write_shapes(tmp_path / "shapes", train=2, val=1)
    env = {"SHAPES_ROOT": str(tmp_path / "shapes"), "OMP_NUM_THREADS": "1"}
    here = dict(cwd=tmp_path, env=env)
    command, recipe = python.with_name("hire-mlp"), "cascade_mask_rcnn_hire_nano_shapes"
    short = ["train_cfg.max_iters=1", "train_cfg.val_interval=2", "train_dataloader.batch_size=2"]
    run(command, "train", recipe, "--work-dir", "work", "--cfg-options", *short, **here)
    assert (tmp_path / "work/iter_1.pth").exists()
    said = run(command, "test", f"hire_mlp_mm::{recipe}.py", "work/iter_1.pth", **here)
    assert "coco/bbox_mAP: " in said
    # what `mim train hire_mlp_mm mine.py` does
    (tmp_path / "mine.py").write_text(MINE)
    run(python, site / "hire_mlp_mm/.mim/tools/train.py", "mine.py", **here)
    assert (tmp_path / "mim/iter_1.pth").exists()
    image = next((tmp_path / "shapes/images/validation").iterdir())
    said = run(python, "-c", PREDICT, "work/iter_1.pth", image, **here)
    assert said.splitlines()[0].startswith(str(site / "hire_mlp_mm"))
    assert int(said.splitlines()[-1]) > 0


@pytest.mark.slow
def test_the_command_of_the_wheel(installed, tmp_path):
    """Help, the doctor and a verb, where no checkout is; also as `python -m`."""
    python, _ = installed
    command = python.with_name("hire-mlp")
    assert "  doctor " in run(command, "--help", cwd=tmp_path)
    said = run(python, "-W", "ignore", "-m", "hire_mlp_mm", "doctor", "--json", cwd=tmp_path)
    assert json.loads(said)["well"]
    source = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
    words = ["-m", "hire_mlp_mm", "swap", source, "--arch", "tiny", "--out", "mine.py"]
    said = run(python, *words, cwd=tmp_path)
    assert "model.neck.in_channels: [512, 1024, 2048] -> [" in said
    assert Config.fromfile(tmp_path / "mine.py").model.backbone.type == "HireMLP"
    again = [command, "bench", "--arch", "tiny", "--size", "64x64", "--runs", "1"]
    assert "| reference | float32 | " in run(*again, "--against", "reference", cwd=tmp_path)


def test_index_of_the_wheel_names_its_configs(installed):
    mim = installed[1] / "hire_mlp_mm/.mim"
    for metafile in load(mim / "model-index.yml")["Import"]:
        for model in load(mim / metafile)["Models"]:
            assert (mim / model["Config"]).exists(), model


@pytest.mark.slow
def test_installing_changes_no_other_package(archives, tmp_path):
    """Least of all a compiled mmcv, which mmcv-lite would break (here a name without content)."""
    run(sys.executable, "-m", "venv", tmp_path)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    for name, version in (("torch", "2.4.0"), ("mmcv", "2.1.0"), ("mmengine", "0.10.7")):
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("")
    pip = [tmp_path / "bin/python", "-m", "pip", "--disable-pip-version-check"]
    before = run(*pip, "freeze").splitlines()
    assert "mmcv==2.1.0" in before
    run(*pip, "install", "--no-index", archives[0])
    after = run(*pip, "freeze").splitlines()
    assert [line for line in after if not line.startswith("hire_mlp_mm")] == before
    assert len(after) == len(before) + 1


def test_a_recipe_by_name(tmp_path):
    """The same config as by its path; mmengine would add a scope that has no detector."""
    (tmp_path / "mine.py").write_text(f"_base_ = {BY_NAME!r}\n")
    by_name = Config.fromfile(tmp_path / "mine.py")
    by_path = Config.fromfile(ROOT / "configs" / BY_NAME.partition("::")[2])
    assert by_name.to_dict() == by_path.to_dict()
    assert get_config(BY_NAME).to_dict() == by_path.to_dict()
    (tmp_path / "mine.py").write_text("_base_ = 'hire_mlp_mm::nothing.py'\n")
    with pytest.raises(FileNotFoundError, match=r"nothing\.py"):
        Config.fromfile(tmp_path / "mine.py")


def test_names_of_other_packages_are_left_to_mmengine(tmp_path):
    name = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"
    (tmp_path / "mine.py").write_text(f"_base_ = {name!r}\n")
    assert Config.fromfile(tmp_path / "mine.py").model.type == "RetinaNet"
    assert get_config(name).model.type == "RetinaNet"
