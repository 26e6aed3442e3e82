"""Does a weight file from a stranger run nothing, whichever way it comes in, and cost nothing?"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from shapes import write_shapes

from hire_mlp_mm.checkpoint import CheckpointError, read_checkpoint
from tests.conftest import ROOT
from tests.hostile import exploits, pickled, torch_zip
from tests.reference import classifier_state
from tests.second_floor.test_export import CAN_EXPORT

SEGMENTATION = "configs/upernet_hire_nano_shapes.py"
PROGRAM = "__import__('os').system('touch {}')"
HARMLESS_UNLESS_UNPACKED = ("zipped once more",)


@pytest.fixture
def mark(tmp_path):
    """A file that an exploit makes."""
    return tmp_path / "ran"


def names() -> list[str]:
    return list(exploits(Path("ran"), {}))


def write(name: str, mark: Path) -> str:
    path = mark.parent / "file.pth"
    path.write_bytes(exploits(mark, {"backbone.x": torch.zeros(3)})[name])
    return str(path)


def assert_refused(error: Exception, path: str, mark: Path) -> None:
    assert not mark.exists()
    assert path in str(error)
    assert len(str(error).replace(path, "").splitlines()) == 1
    assert "weights_only" not in str(error)


@pytest.mark.parametrize("name", names())
def test_the_exploits_are_real(name, mark):
    """Read without a check, each of them runs."""
    path = write(name, mark)
    with contextlib.suppress(Exception):  # after it ran
        torch.load(path, weights_only=False)
    assert mark.exists() == (name not in HARMLESS_UNLESS_UNPACKED)


@pytest.mark.parametrize("unsafe", ["0", "1"])
@pytest.mark.parametrize("name", names())
def test_a_file_that_would_run_code_is_refused(name, unsafe, mark, monkeypatch):
    """Also where the environment asks torch not to check."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", unsafe)
    path = write(name, mark)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert_refused(error.value, path, mark)
    if name == "numpy object array":  # doesn't get as far as its objects
        assert "holds an array of 'O8', expected numbers" in str(error.value)
    elif not name.startswith(("bare", "tar", "zipped")):  # those are no torch files to begin with
        assert "refused: reading it would run code" in str(error.value)


@pytest.mark.parametrize("name", names())
def test_mmengine_is_guarded(name, mark, guarded):
    """Its functions, which the runner and every model's init_cfg call, on both stacks."""
    from mmengine.runner import CheckpointLoader, load_checkpoint
    from mmengine.runner.checkpoint import _load_checkpoint, _load_checkpoint_with_prefix

    path = write(name, mark)
    for load in (
        CheckpointLoader.load_checkpoint,
        _load_checkpoint,
        partial(_load_checkpoint_with_prefix, "backbone"),
        partial(load_checkpoint, torch.nn.ReLU()),
    ):
        with pytest.raises(CheckpointError) as error:
            load(path)
        assert_refused(error.value, path, mark)


@pytest.mark.parametrize("name", names())
def test_mmengines_loaders_by_themselves(name, mark, guarded):
    """Those that a model zoo's name leads to call torch themselves: nothing runs, either."""
    from mmengine.runner import checkpoint

    path = write(name, mark)
    with pytest.raises(Exception, match=r".") as error:
        checkpoint.load_from_local(path, "cpu")
    assert not mark.exists(), error
    with pytest.raises(Exception, match=r"."):
        torch.load(path, weights_only=False)
    assert not mark.exists()


@pytest.fixture
def served(tmp_path):
    """A folder and the URL at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("name", ["os.system", "legacy", "zipped once more"])
def test_a_url_is_guarded(name, mark, served, guarded, monkeypatch):
    """Torch hub unpacks archives and reads what is in them without a check."""
    from mmengine.runner import CheckpointLoader
    from mmengine.runner.checkpoint import load_from_http

    folder, url = served
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder.parent / "hub"))
    shutil.move(write(name, mark), folder / "file.pth")
    with pytest.raises(CheckpointError) as error:
        CheckpointLoader.load_checkpoint(f"{url}/file.pth")
    assert "file.pth" in str(error.value)
    with pytest.raises(Exception, match=r"."):
        load_from_http(f"{url}/file.pth")
    assert not mark.exists()


# Commands, one after the other, of one process: each prints its exit code and its last error.
CHILD = """
import contextlib, io, json, sys
from hire_mlp_mm import cli
for verb, *args in json.loads(sys.argv[1]):
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said):
        try:
            cli.main([verb, *args])
        except SystemExit as end:
            code = end.code
    print("\\nRESULT" + json.dumps([code, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A training checkpoint that fits the segmentor, to be changed and saved again."""
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import MODELS, DefaultScope

    cfg = Config.fromfile(ROOT / SEGMENTATION)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).state_dict()
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    parts = dict(meta=dict(epoch=0, iter=1), message_hub=hub, optimizer=optimizer)
    return dict(parts, state_dict=model.state_dict())


def run_commands(run_tool, commands, folder) -> list[tuple[int, list[str]]]:
    """Exit code and errors of commands of the tools."""
    write_shapes(folder / "shapes", train=4, val=2)
    env = {"SHAPES_ROOT": str(folder / "shapes")}
    done = run_tool("-c", CHILD, json.dumps(commands), env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    results = [json.loads(line.removeprefix("RESULT")) for line in lines]
    assert len(results) == len(commands)
    return [(code, [x for x in said.splitlines() if "error" in x]) for code, said in results]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_tool_refuses(mark, checkpoint, tmp_path, run_tool):
    """One line and exit code 2, by whatever option the file comes in."""
    exploit = tmp_path / "exploit.pth"
    exploit.write_bytes(exploits(mark, checkpoint["state_dict"])["os.system"])
    for name in ("auto", "newest"):
        (tmp_path / name).mkdir()
    shutil.copy(exploit, tmp_path / "auto/iter_1.pth")
    (tmp_path / "auto/last_checkpoint").write_text(str(tmp_path / "auto/iter_1.pth"))
    pretrained = ["model.backbone.init_cfg.type=Pretrained"]
    pretrained += [f"model.backbone.init_cfg.checkpoint={exploit}"]
    whole = ["model.init_cfg.type=Pretrained", f"model.init_cfg.checkpoint={exploit}"]
    out = ["--work-dir", str(tmp_path / "out")]
    commands = [
        ["train", SEGMENTATION, "--resume", str(exploit), *out],
        ["train", SEGMENTATION, "--resume", "--work-dir", str(tmp_path / "auto")],
        ["train", SEGMENTATION, *out, "--cfg-options", f"load_from={exploit}"],
        ["train", SEGMENTATION, *out, "--cfg-options", *pretrained],
        ["train", SEGMENTATION, *out, "--cfg-options", *whole],
        ["test", SEGMENTATION, str(exploit), *out],
        ["convert", str(exploit), str(tmp_path / "new.pth")],
    ]
    if CAN_EXPORT:  # else it says so before it looks at a file
        commands.append(["export", SEGMENTATION, str(exploit), str(tmp_path / "new.onnx")])
    for command, (code, errors) in zip(
        commands, run_commands(run_tool, commands, tmp_path), strict=True
    ):
        assert code == 2, (command, errors)
        assert len(errors) == 1, (command, errors)
        assert errors[0].startswith(f"hire-mlp {command[0]}: error: "), (command, errors)
        assert "refused: reading it would run code (posix.system)" in errors[0], command
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_a_tool_says_of_other_files(mark, checkpoint, tmp_path, run_tool):
    """Weights that mmengine would load in part, or go on from."""
    state = checkpoint["state_dict"]
    key = "backbone.stages.0.blocks.0.mlp.fc1.weight"
    renamed = {k.replace("backbone", "encoder"): v for k, v in state.items()}
    junk = {f"junk.{i}": torch.zeros(1) for i in range(10_000)}
    program = PROGRAM.format(mark)
    files = {
        "text": b"<html>404",
        "renamed": pickled({"state_dict": renamed}),
        "nan": pickled({"state_dict": {**state, key: state[key] * float("nan")}}),
        "narrow": pickled({"state_dict": {**state, key: state[key][1:]}}),
        "plain": pickled({"state_dict": state}),
        "junk": pickled({"state_dict": {**state, **junk}}),
        "program": pickled({**checkpoint, "meta": {**checkpoint["meta"], "config": program}}),
    }
    paths = {name: str(tmp_path / f"{name}.pth") for name in files}
    for name, content in files.items():
        Path(paths[name]).write_bytes(content)
    train = ["train", SEGMENTATION, "--work-dir", str(tmp_path / "out")]
    short = ["--cfg-options", "train_cfg.max_iters=1", "train_cfg.val_interval=1"]
    short += ["train_dataloader.batch_size=2", "default_hooks.checkpoint.interval=9"]
    test = ["test", SEGMENTATION, "--work-dir", str(tmp_path / "out")]
    expected = [
        ([*test, paths["text"]], "text.pth cannot be read: it is a web page"),
        ([*test, paths["renamed"]], "renamed.pth is not of this config's model"),
        ([*test, paths["nan"]], f"nan.pth: {key} holds NaN or Inf"),
        ([*train, *short, f"load_from={paths['renamed']}"], "holds nothing of the model's backb"),
        ([*train, *short, f"load_from={paths['nan']}"], f"nan.pth: {key} holds NaN or Inf"),
        ([*train, *short, f"load_from={paths['narrow']}"], f"{key[9:]} has shape"),
        ([*train, "--resume", paths["plain"]], "plain.pth holds no state of a training"),
        ([*train, *short, f"load_from={paths['junk']}"], ""),
        # Nothing is left to do of one iteration; what counts is that the program isn't run.
        ([*train, "--resume", paths["program"], *short], ""),
    ]
    results = run_commands(run_tool, [command for command, _ in expected], tmp_path)
    for (command, message), (code, errors) in zip(expected, results, strict=True):
        assert code == (2 if message else 0), (command, errors)
        assert len(errors) == (1 if message else 0), (command, errors)
        assert message in "".join(errors), (command, errors)
    assert not mark.exists()
    log = "".join(path.read_text() for path in (tmp_path / "out").glob("*/*.log"))
    assert "left out junk.0, junk.1, junk.2 and 9997 more" in log
    assert "junk.77" not in log


def test_the_config_in_a_checkpoint_is_a_real_exploit(mark):
    """mmengine runs it when training goes on."""
    from mmengine.config import Config

    Config.fromstring(PROGRAM.format(mark), file_format=".py")
    assert mark.exists()


# Files that crash, hang or fill the memory of who reads them -------------------------------------


def nested(depth: int) -> bytes:
    """A name that is a tuple in a tuple in a tuple, hashing which takes the stack."""
    return torch_zip(b"\x80\x02}K\x01" + b"\x85" * depth + b"K\x01s.")


def doubled(times: int) -> bytes:
    """A name that is a tuple of twice the same tuple of twice the same, which takes forever."""
    pairs = b"".join(b"q%ch%c\x86" % (i, i) for i in range(times))
    return torch_zip(b"\x80\x02}K\x01" + pairs + b"K\x01s.")


def tensor(numel: int, shape: int, stride: int, content: bytes, **kwargs) -> bytes:
    """A file with a tensor that claims `numel` numbers in its storage, and is of some shape."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    storage += b"X\x03\x00\x00\x00cpu\x8a\x08" + numel.to_bytes(8, "little") + b"tQ"
    args = b"(" + storage + b"K\x00\x8a\x08" + shape.to_bytes(8, "little") + b"\x85"
    args += b"K" + bytes([stride]) + b"\x85\x89ccollections\nOrderedDict\n)Rt"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n" + args + b"R"
    name = b"X\x10\x00\x00\x00stem.proj.weight"
    return torch_zip(b"\x80\x02}" + name + rebuild + b"s.", content, **kwargs)


BOMBS = {
    "nested": (nested(3_000_000), "nested beyond"),
    "doubled": (doubled(60), "nested beyond"),
    "bytearray": (
        torch_zip(b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."),
        "bytearray",
    ),
    "compressed": (
        tensor(1 << 28, 1 << 28, 1, bytes(1 << 26), packing=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "huge storage": (tensor(1 << 40, 1 << 40, 1, bytes(64)), "cannot be read"),
    "huge tensor": (tensor(16, 1 << 40, 0, bytes(64)), "holds fewer"),
    "negative": (tensor((1 << 64) - 4, 4, 1, bytes(64)), "cannot be read"),
}
LITTLE_ROOM = """
import resource, sys
from hire_mlp_mm.checkpoint import CheckpointError, read_backbone
room = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
for path in sys.argv[1:]:
    try:
        read_backbone(path)
    except CheckpointError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux gives it")
def test_bombs(tmp_path, run_tool):
    """In a process that may take no more than 256 MB for them all."""
    paths = []
    for name, (content, _) in BOMBS.items():
        paths.append(tmp_path / f"{name}.pth")
        paths[-1].write_bytes(content)
    done = run_tool("-c", LITTLE_ROOM, *paths, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS), done.stdout
    for line, path, (_, message) in zip(lines, paths, BOMBS.values(), strict=True):
        assert str(path) in line
        assert message in line


def test_an_honest_tensor_is_read_from_a_file_made_by_hand(tmp_path):
    """So that the ones above are refused for what is wrong with them."""
    (tmp_path / "file.pth").write_bytes(tensor(16, 16, 1, torch.arange(16.0).numpy().tobytes()))
    state = read_checkpoint(tmp_path / "file.pth")
    assert torch.equal(state["stem.proj.weight"], torch.arange(16.0))


MEMORY = """
import resource, sys
from hire_mlp_mm.checkpoint import read_backbone
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = len(read_backbone(sys.argv[1]))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux gives it")
def test_junk_beside_the_weights_takes_no_memory(tmp_path, run_tool):
    weights = {f"backbone.{key}": value for key, value in classifier_state("tiny").items()}
    count = int(os.environ.get("JUNK_TENSORS", "100"))  # of 4 MB each
    junk = {f"junk.{i}": torch.zeros(1 << 20) for i in range(count)}
    torch.save({"model": weights | junk}, tmp_path / "file.pth")
    done = run_tool("-c", MEMORY, tmp_path / "file.pth")
    (tmp_path / "file.pth").unlink()
    assert done.returncode == 0, done.stderr[-2000:]
    count, megabytes = map(int, done.stdout.split())
    assert count == len(weights)
    # Of 470 or more in the file. The weights are 70, once in it and once out of it.
    assert megabytes < 250
