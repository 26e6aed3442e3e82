"""Do the promises of a training hold in whatever way it is started?

The table in docs/reliability.md says what holds where; each of its cells has a test here.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chaos
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from shapes import write_shapes

from hire_mlp_mm.engine.config import NOTE
from tests.conftest import ROOT
from tests.hostile import exploits

# (way to train, training): the hosts' own tools each with a config of theirs.
WAYS = {
    "hire-mlp train": ("hire-mlp", "segmentor, epochs"),
    "mim train": ("mim", "segmentor, epochs"),
    "Runner.from_cfg(harden(cfg))": ("plain", "detector, iterations, 2 workers"),
    "MMDetection's train.py": ("host", "detector, epochs"),
    "MMSegmentation's train.py": ("host", "segmentor, epochs"),
    "MMPretrain's train.py": ("host", "classifier, epochs, 2 workers"),
}
ONE_LINE = ("hire-mlp train", "mim train")  # an error is one line, and the exit code 2
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, train=2 * chaos.INTERVAL, val=2)
    return folder


@pytest.fixture
def training(way, shapes, tmp_path, monkeypatch):
    """Make a training of a way, in a work dir of its own."""
    monkeypatch.setenv("SHAPES_ROOT", f"{shapes}/")

    def make(name: str, how: str = WAYS[way][0]) -> chaos.Training:
        config = chaos.write_config(WAYS[way][1], tmp_path)
        return chaos.Training(config, tmp_path / name, how)

    return make


@functools.cache
def trained(name: str, folder: Path, shapes: Path) -> chaos.Training:
    """A training that has come to its end."""
    run = chaos.Training(chaos.write_config(name, folder), folder / "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAPES_ROOT", f"{shapes}/")
        assert run.finish() == 0, run.log.read_text()[-2000:]
    return run


@pytest.fixture(scope="module")
def runs(shapes, tmp_path_factory):
    """A training that has come to its end, by its name or the host's."""
    names = {
        "mmdet": "detector, epochs",
        "mmseg": "segmentor, epochs",
        "mmpretrain": "classifier, epochs, 2 workers",
    }
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str) -> chaos.Training:
        name = names.get(name, name)
        (folder / name).mkdir(exist_ok=True)
        return trained(name, folder / name, shapes)

    return run


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def assert_ended(way: str, code: int, log: Path, message: str) -> None:
    """A run has ended with an error that names what is wrong."""
    said = log.read_text()
    last = said.strip().splitlines()[-1]
    assert re.search(message, last), said[-3000:]
    if way in ONE_LINE:
        prog = "hire-mlp train" if way == "hire-mlp train" else "train.py"
        assert last.startswith(f"{prog}: error: ")
        assert "Traceback" not in said
        assert code == 2
    else:
        assert "Traceback" in said
        assert code == 1


@pytest.mark.slow
@every_way
@pytest.mark.timeout(900)
def test_a_killed_training_goes_on_bit_for_bit(way, training, runs, guarded):
    """Killed while it writes; then the newest checkpoint is damaged and the note lost, too."""
    whole = runs(WAYS[way][1])
    killed = training("killed")
    life = killed.start()
    chaos.kill_writing(life, killed.work_dir, files=3, part=0.5)
    life.join()
    assert life.exitcode < 0, "it had finished already: " + killed.log.read_text()[-2000:]
    chaos.check(killed, 0)  # no checkpoint is there in part
    newest = max(killed.work_dir.glob("[ei]*.pth"), key=lambda path: path.stat().st_mtime)
    cut(newest)
    (killed.work_dir / NOTE).unlink()
    assert killed.finish() == 0, killed.log.read_text()[-2000:]
    said = killed.log.read_text()
    assert f"{newest} cannot be read" in said
    assert "going on from" in said
    assert chaos.difference(whole.result(), killed.result()) is None


@every_way
@pytest.mark.timeout(600)
def test_nan_stops_a_training(way, training):
    run = training("nan")
    code = run.finish("--cfg-options", "optim_wrapper.optimizer.lr=1e30")
    assert_ended(way, code, run.log, r"iteration \d: .* (is|NaN) .*, with the images /")
    for path in run.checkpoints():
        state = torch.load(path, weights_only=False)["state_dict"]
        assert all(value.isfinite().all() for value in state.values() if value.is_floating_point())


@every_way
@pytest.mark.timeout(600)
def test_a_wrong_file_of_the_data_is_named(way, training, shapes, tmp_path, monkeypatch):
    shutil.copytree(shapes, tmp_path / "data")
    monkeypatch.setenv("SHAPES_ROOT", f"{tmp_path}/data/")
    images = sorted((tmp_path / "data/images/training").iterdir())
    for image in images:
        cut(image)
    run = training("data")
    code = run.finish()
    assert_ended(way, code, run.log, rf"{tmp_path}/data/images/training/\S+: the JPEG is truncated")


@every_way
@pytest.mark.timeout(600)
def test_data_that_are_not_there_are_named(way, training, monkeypatch):
    """And `hire-mlp` says what to set, before anything is built."""
    monkeypatch.setenv("SHAPES_ROOT", "/nowhere/")
    run = training("missing")
    code = run.finish()
    assert_ended(way, code, run.log, r"/nowhere/.* not found")
    told = "set SHAPES_ROOT" in run.log.read_text().splitlines()[-1]
    assert told == (way in ONE_LINE)


@every_way
@pytest.mark.timeout(600)
def test_a_checkpoint_that_would_run_code_is_refused(way, training, tmp_path):
    run, mark = training("hostile"), tmp_path / "ran"
    run.work_dir.mkdir()
    path = run.work_dir / ("epoch_1.pth" if "epochs" in WAYS[way][1] else "iter_3.pth")
    path.write_bytes(exploits(mark, {"x": torch.zeros(1)})["os.system"])
    (run.work_dir / NOTE).write_text(str(path))
    code = run.finish()
    assert_ended(way, code, run.log, r"refused: reading it would run code \(posix.system\)")
    assert not mark.exists()


@every_way
@pytest.mark.timeout(600)
def test_a_checkpoint_of_another_model_is_refused(way, training, runs, guarded):
    """mmengine would load what fits, and go on."""
    name = WAYS[way][1]
    run, finished = training("other"), runs(name)
    last = next(path for path in finished.checkpoints() if not path.name.startswith("best"))
    other = torch.load(last)
    lacking = "backbone.stages.3.blocks.0.mlp.fc1.weight"
    del other["state_dict"][lacking], other["ema_state_dict"][f"module.{lacking}"]
    run.work_dir.mkdir()
    torch.save(other, run.work_dir / ("epoch_6.pth" if "epochs" in name else "iter_18.pth"))
    code = run.finish()
    assert_ended(way, code, run.log, r"lacks stages\.3\.blocks\.0\.mlp\.fc1\.weight")


# Tests ------------------------------------------------------------------------------------------


SCRIPT = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner
from hire_mlp_mm.engine import harden
cfg = Config.fromfile(sys.argv[1])
cfg.merge_from_dict(dict(load_from=sys.argv[2], work_dir=sys.argv[4]))
Runner.from_cfg(harden(cfg)).test()
"""
TEST_WAYS = {  # (package whose tool it is, host of the config)
    "hire-mlp test, mim test": ("hire_mlp_mm", "mmdet"),
    "Runner.from_cfg(harden(cfg))": (None, "mmseg"),
    "MMSegmentation's test.py": ("mmseg", "mmseg"),
    "MMPretrain's test.py": ("mmpretrain", "mmpretrain"),
}
# MMSegmentation's builds mmengine's own runner, whatever the config says.
NAMES_NO_FILE = "MMSegmentation's test.py"


@pytest.mark.slow
@pytest.mark.parametrize("way", TEST_WAYS)
@pytest.mark.timeout(900)
def test_a_checkpoint_is_tested(way, runs, shapes, tmp_path, fork_tool):
    """Read as data, compared with the model; and a wrong file of the data is named."""
    package, host = TEST_WAYS[way]
    run = runs(host)
    checkpoint = next(path for path in run.checkpoints() if not path.name.startswith("best"))
    tool, config = tmp_path / "script.py", tmp_path / "config.py"
    tool.write_text(SCRIPT)
    tool = chaos.tool_of(package, "test.py") if package else tool
    parts = (f"test_{part} = _base_.val_{part}" for part in ("dataloader", "evaluator"))
    config.write_text("\n".join([f"_base_ = {str(run.config)!r}", *parts, "test_cfg = dict()"]))

    def test(path: Path, data: Path = shapes) -> tuple[int, str, str]:
        env = {"SHAPES_ROOT": f"{data}/"}
        done = fork_tool(tool, config, path, "--work-dir", tmp_path / "out", env=env)
        assert "AttributeError" not in done.stderr, done.stderr[-3000:]
        *_, last = ["", *done.stderr.strip().splitlines()]
        assert ("Traceback" in done.stderr) == (done.returncode == 1)
        return done.returncode, done.stdout, last

    code, said, _ = test(checkpoint)
    assert code == 0
    assert re.search(r"\(test\).*(bbox_mAP|mIoU|accuracy/top1): ", said)
    expected = 2 if package == "hire_mlp_mm" else 1
    state, mark = torch.load(checkpoint)["state_dict"], tmp_path / "ran"
    path = tmp_path / "hostile.pth"
    path.write_bytes(exploits(mark, state)["os.system"])
    code, _, last = test(path)
    assert code == expected
    assert f"{path} refused: reading it would run code (posix.system)" in last
    assert not mark.exists()
    path = tmp_path / "other.pth"
    torch.save(
        dict(state_dict={k.replace("backbone", "encoder"): v for k, v in state.items()}), path
    )
    code, _, last = test(path)
    assert code == expected
    assert f"checkpoint {path} is not of this config's model" in last
    shutil.copytree(shapes, tmp_path / "data")
    for image in (tmp_path / "data/images").rglob("*.jpg"):
        cut(image)
    code, said, last = test(checkpoint, tmp_path / "data")
    names = re.search(rf"{tmp_path}/data/images/\S+: the JPEG is truncated", last)
    assert bool(names) == (way != NAMES_NO_FILE), last
    assert code == expected or way == NAMES_NO_FILE


# Inference ---------------------------------------------------------------------------------------

# Of a script that imports the package and then uses what its host offers.
APIS = {
    "mmdet": """
from mmdet.apis import DetInferencer, inference_detector, init_detector
model = init_detector(config, checkpoint, device="cpu")
found = inference_detector(model, image).pred_instances
print("init_detector", len(found) > 0, bool(found.scores.isfinite().all()))
boxes = found.bboxes[0].tolist()
for said in (dict(model=config, weights=checkpoint), dict(weights=checkpoint)):
    inferencer = DetInferencer(**said, device="cpu", show_progress=False)
    predicted = inferencer(image, no_save_pred=True, no_save_vis=True)["predictions"][0]
    same = all(abs(a - b) < 1e-3 for a, b in zip(predicted["bboxes"][0], boxes))
    print("\\nDetInferencer", same)
""",
    "mmseg": """
from mmseg.apis import MMSegInferencer, inference_model, init_model
model = init_model(config, checkpoint, device="cpu")
classes = inference_model(model, image).pred_sem_seg.data[0]
print("init_model", tuple(classes.shape) == (128, 128))
predicted = MMSegInferencer(config, checkpoint, device="cpu")(image)["predictions"]
print("\\nMMSegInferencer", bool((predicted == classes.numpy()).all()))
""",
    "mmpretrain": """
from mmpretrain import FeatureExtractor, ImageClassificationInferencer, get_model
found = ImageClassificationInferencer(config, pretrained=checkpoint, device="cpu")(image)[0]
print("\\nImageClassificationInferencer", found["pred_score"] > 0)
features = FeatureExtractor(config, pretrained=checkpoint, device="cpu")(image)[0]
print("\\nFeatureExtractor", tuple(features[-1].shape) == (20,))
print("\\nget_model", get_model(config, pretrained=checkpoint) is not None)
""",
}
API_HEAD = """
import sys, warnings
warnings.simplefilter("ignore")
import hire_mlp_mm
config, checkpoint, image, *hostile = sys.argv[1:]
"""
API_TAIL = """
from hire_mlp_mm.engine.checkpoints import read_as_data
from mmengine.runner import CheckpointLoader
from importlib.util import find_spec
import mmengine.runner.checkpoint as loading
# The fork opens what torch's check refuses, until it is told not to.
for guarded in (False, True):
    if guarded:
        read_as_data()
    if guarded or not hasattr(loading, "_safe_torch_load"):
        try:
            CheckpointLoader.load_checkpoint(hostile[0], map_location="cpu")
        except Exception as error:
            print("refused", "posix.system" in str(error))
"""


@pytest.mark.parametrize("host", APIS)
@pytest.mark.timeout(600)
def test_the_hosts_inference_reads_our_checkpoints(host, runs, shapes, tmp_path, run_tool):
    run = runs(host)
    checkpoint = next(path for path in run.checkpoints() if not path.name.startswith("best"))
    config, mark = tmp_path / "config.py", tmp_path / "ran"
    config.write_text(f"_base_ = {str(run.config)!r}\ntest_dataloader = _base_.val_dataloader\n")
    hostile = tmp_path / "hostile.pth"
    hostile.write_bytes(exploits(mark, torch.load(checkpoint)["state_dict"])["os.system"])
    image = next((shapes / "images/validation").iterdir())
    script = API_HEAD + APIS[host] + API_TAIL
    # The config's hook that writes progress is there.
    env = {"SHAPES_ROOT": f"{shapes}/", "PYTHONPATH": str(ROOT / "dev")}
    done = run_tool("-c", script, config, checkpoint, image, hostile, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    names = re.findall(r'print\("(?:\\n)?(\w+)"', APIS[host])
    said = re.findall(r"^(\w+) (True|False)(?: (True|False))?$", done.stdout, re.M)
    assert set(names) | {"refused"} == {name for name, *_ in said}
    assert all("False" not in values for _, *values in said), said
    assert not mark.exists()


@pytest.mark.parametrize("host", ["mmdet", "mmseg", "mmpretrain"])
@pytest.mark.timeout(600)
def test_a_plain_runner_of_mmengine_reads_our_checkpoints(host, runs, shapes, guarded, tmp_path):
    """`Runner.test()` and `resume=True` of a config that is not hardened, in this process."""
    run = runs(host)
    last = next(path for path in run.checkpoints() if not path.name.startswith("best"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHAPES_ROOT", f"{shapes}/")
        cfg = Config.fromfile(run.config)
    cfg.merge_from_dict(dict(work_dir=str(tmp_path), experiment_name=f"{tmp_path.name}-{host}"))
    # The average, whose weights the checkpoints hold.
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type == "EMAHook"]
    cfg.load_from = str(last)
    for part in ("dataloader", "evaluator"):
        cfg[f"test_{part}"] = cfg[f"val_{part}"]
    cfg.test_cfg = dict()
    tested = Runner.from_cfg(cfg).test()
    assert all(value == value for value in tested.values())
    assert len(tested) > 0
    cfg.resume, cfg.experiment_name = True, f"{tmp_path.name}-{host}-resumed"
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == chaos.LENGTH


def has_compiled_ops() -> bool:
    from hire_mlp_mm import mmcv_ops

    return "compiled ops" in mmcv_ops.describe() and "no compiled" not in mmcv_ops.describe()


@pytest.mark.skipif(has_compiled_ops(), reason="needs an mmcv without ops")
def test_mmdetections_test_py_needs_compiled_mmcv():
    """It imports the ops before it reads the config that would import ours."""
    done = subprocess.run(
        [sys.executable, chaos.tool_of("mmdet", "test.py"), "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "No module named 'mmcv._ext'" in done.stderr
