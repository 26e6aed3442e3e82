"""Do the weights load right, or else not at all, with a line that helps?"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.logging import HistoryBuffer

from hire_mlp_mm import HireMLP, HireMLPNet, backbone, load_weights, weights
from hire_mlp_mm.arch import ARCHS
from hire_mlp_mm.checkpoint import CheckpointError, convert_state_dict, read_checkpoint
from hire_mlp_mm.convert import convert
from hire_mlp_mm.errors import UserError
from hire_mlp_mm.weights import cached_path
from tests.conftest import NANO, ROOT
from tests.hostile import torch_zip
from tests.reference import classifier_state, dense_state

KEYS = {"tiny": 415, "small": 795, "base": 1441, "large": 1441}
TINY = classifier_state("tiny")
CONVERTED = convert_state_dict(TINY)


def pretrained(path, arch="tiny", **kwargs) -> HireMLP:
    """A backbone that has loaded `path` by init_cfg."""
    prefix = {"prefix": kwargs.pop("prefix")} if "prefix" in kwargs else {}
    init_cfg = dict(type="Pretrained", checkpoint=str(path), **prefix)
    model = HireMLP(arch, init_cfg=init_cfg, **kwargs)
    model.init_weights()
    return model


def assert_loaded(model: HireMLP, dropped: tuple[str, ...] = ()) -> None:
    state = model.state_dict()
    for key, value in CONVERTED.items():
        if not key.startswith(("head.", *dropped)):
            assert torch.equal(state[key].float(), value.float()), key


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A file as the official training script writes it, its Namespace included."""
    path = tmp_path_factory.mktemp("weights") / "hire_mlp_tiny.pth"
    args = argparse.Namespace(model="hire_mlp_tiny", lr=5e-4, opt_betas=None, device="cuda")
    torch.save(
        dict(model=TINY, optimizer={"state": {}}, lr_scheduler={}, epoch=299, model_ema=None,
             args=args), path,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("arch", ARCHS)
def test_official_keys_all_find_their_place(arch):
    state = classifier_state(arch)
    assert len(state) == KEYS[arch]
    converted = convert_state_dict(state)
    assert len(converted) == KEYS[arch]
    with torch.device("meta"):
        expected = HireMLPNet(arch).state_dict()
    assert converted.keys() - expected.keys() == {"head.weight", "head.bias"}
    lacking = expected.keys() - converted.keys()
    assert {key.split(".")[0] for key in lacking} == {"norm0", "norm1", "norm2"}
    for key in converted.keys() & expected.keys():
        assert converted[key].shape == expected[key].shape, key


def test_conversion_is_pure_and_passes_ours_through():
    state = dict(TINY)
    converted = convert_state_dict(state)
    assert state == TINY
    again = convert_state_dict(converted)
    assert list(again) == list(converted)
    assert all(again[key] is converted[key] for key in again)


def test_dense_and_classifier_agree():
    """norm6 of the dense backbone and norm of the classifier are one place."""
    dense = convert_state_dict(dense_state("tiny"))
    assert set(dense) - set(CONVERTED) == {k for k in dense if k[:5] in ("norm0", "norm1", "norm2")}


@pytest.mark.parametrize("key", ["network.0.0.attn.mlp_h3.weight", "patch_embed.weight", "fc.bias"])
def test_unknown_key_raises(key):
    with pytest.raises(CheckpointError, match="is not one of Hire-MLP"):
        convert_state_dict({**TINY, key: torch.zeros(1)})


def test_official_file(official, monkeypatch):
    said = []
    monkeypatch.setattr(backbone, "print_log", lambda message, **kwargs: said.append(message))
    assert_loaded(pretrained(official))
    assert len(said) == 1
    assert f"{official}: loaded 413 tensors" in said[0]
    assert "dropped 2 without a place here (head)" in said[0]
    assert "(norm0, norm1, norm2)" in said[0]


CONTAINERS = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "ema only": lambda s: {"model_ema": s, "model": None},
    "data parallel": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "converted": convert_state_dict,
    "detector": lambda s: {
        "state_dict": {
            **{f"backbone.{k}": v for k, v in convert_state_dict(s).items() if k[:4] != "head"},
            "neck.convs.weight": torch.zeros(3),
            "roi_head.fc.bias": torch.zeros(3),
        },
        "meta": {"epoch": 12},
    },
    "wrapped detector": lambda s: {
        "state_dict": {f"module.backbone.{k}": v for k, v in convert_state_dict(s).items()}
    },
    "reference segmentor": lambda s: {
        "state_dict": {**{f"backbone.{k}": v for k, v in s.items()}, "decode_head.x": torch.ones(1)}
    },
    "mmpretrain classifier": lambda s: {
        "state_dict": {
            **{f"backbone.{k}": v for k, v in convert_state_dict(s).items() if k[:4] != "head"},
            "head.fc.weight": s["head.weight"],
        }
    },
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("legacy", [False, True])
def test_other_types_and_the_older_format(dtype, legacy, tmp_path):
    state = {key: value.to(dtype) for key, value in TINY.items()}
    torch.save(state, tmp_path / "file.pth", _use_new_zipfile_serialization=not legacy)
    model = pretrained(tmp_path / "file.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    state = convert_state_dict(state)
    for key, value in model.state_dict().items():
        if key in state:
            assert torch.equal(value, state[key].to(value.dtype)), key


def test_file_without_checksums_or_without_alignment(tmp_path):
    """torch.save can be told so, and an archive can be packed anew."""
    if hasattr(torch.serialization, "set_crc32_options"):
        torch.serialization.set_crc32_options(False)
        torch.save(TINY, tmp_path / "file.pth")
        torch.serialization.set_crc32_options(True)
        assert_loaded(pretrained(tmp_path / "file.pth"))
    torch.save(TINY, tmp_path / "file.pth")
    with zipfile.ZipFile(tmp_path / "file.pth") as old:
        for packing, name in ((zipfile.ZIP_STORED, "new.pth"), (zipfile.ZIP_DEFLATED, "small.pth")):
            with zipfile.ZipFile(tmp_path / name, "w", packing) as new:
                for entry in old.namelist():
                    new.writestr(entry, old.read(entry))
    assert_loaded(pretrained(tmp_path / "new.pth"))
    with pytest.raises(CheckpointError, match="compressed"):
        pretrained(tmp_path / "small.pth")


def test_tensors_that_share_memory_go_on_sharing_it(tmp_path):
    whole = torch.arange(12.0)
    torch.save({"a": whole[:4], "b": whole.view(3, 4).t(), "c": torch.ones(2)}, tmp_path / "f.pth")
    state = read_checkpoint(tmp_path / "f.pth")
    torch.save({}, tmp_path / "f.pth")  # what was read is no longer in the file
    assert torch.equal(state["b"], whole.view(3, 4).t())
    state["a"][0] = 5
    assert state["b"][0, 0] == 5
    assert state["c"].tolist() == [1, 1]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_anywhere(legacy, tmp_path):
    path = tmp_path / "file.pth"
    state = {"stem.proj.weight": torch.randn(8, 3, 7, 7), "norm3.bias": torch.randn(8)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    lengths = {*range(70), *range(70, len(whole), 37), *range(len(whole) - 70, len(whole))}
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"file\.pth cannot be read: it is \w+"):
            read_checkpoint(path)


@pytest.mark.parametrize("container", CONTAINERS)
def test_containers(container, tmp_path):
    torch.save(CONTAINERS[container](TINY), tmp_path / "file.pth")
    assert_loaded(pretrained(tmp_path / "file.pth"))


def test_ema_is_taken_when_asked(tmp_path):
    averaged = {key: value + 1 for key, value in TINY.items()}
    torch.save({"model": TINY, "model_ema": averaged}, tmp_path / "file.pth")
    for ema, expected in ((False, TINY), (True, averaged)):
        state = read_checkpoint(tmp_path / "file.pth", ema=ema)
        assert torch.equal(state["norm.weight"], expected["norm.weight"])
    torch.save({"model": TINY, "model_ema": None}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="no averaged weights"):
        read_checkpoint(tmp_path / "none.pth", ema=True)


@pytest.mark.parametrize("allowed_before", [False, True])
def test_training_checkpoint_of_mmengine(tmp_path, allowed_before):
    """Its log (HistoryBuffer, numpy) is skipped, not run, whatever others have allowed."""
    import numpy as np

    log = {"loss": HistoryBuffer([1.0, 2.0], [1, 1]), "lr": np.float64(0.1), "n": np.arange(3)}
    state = {f"backbone.{key}": value for key, value in CONVERTED.items()}
    torch.save({"state_dict": state, "message_hub": {"log_scalars": log}}, tmp_path / "epoch_1.pth")
    theirs = [np.ndarray, np.dtype, getattr] if allowed_before else []
    with torch.serialization.safe_globals(theirs):
        before = torch.serialization.get_safe_globals()
        assert_loaded(pretrained(tmp_path / "epoch_1.pth"))
        assert set(torch.serialization.get_safe_globals()) >= set(before)


@pytest.mark.parametrize("out_indices", [(0,), (0, 1), (1, 2), (3,)])
@pytest.mark.parametrize("output_norm", [True, False])
def test_part_of_a_network(official, out_indices, output_norm):
    model = pretrained(official, out_indices=out_indices, output_norm=output_norm)
    state = model.state_dict()
    for key, value in CONVERTED.items():
        if key in state:
            assert torch.equal(state[key], value)


def test_two_backbones_need_a_prefix(tmp_path):
    student = {f"student.backbone.{k}": v for k, v in CONVERTED.items()}
    teacher = {f"teacher.backbone.{k}": v + 1 for k, v in CONVERTED.items()}
    torch.save({"state_dict": student | teacher}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"several backbones \(student.backbone., teacher"):
        pretrained(tmp_path / "file.pth")
    assert_loaded(pretrained(tmp_path / "file.pth", prefix="student.backbone"))
    with pytest.raises(CheckpointError, match="no Hire-MLP backbone under tutor"):
        pretrained(tmp_path / "file.pth", prefix="tutor.")


class Exploit:
    """Unpickling this runs a command."""

    def __reduce__(self):
        return os.system, ("touch exploited",)


def no_weights(path):
    path.mkdir()


def write(path, data):
    path.write_bytes(data)


def damage(key, change):
    def make(path):
        state = dict(TINY)
        state[key] = change(state[key])
        torch.save({"model": state}, path)

    return make


def without(*keys):
    return lambda path: torch.save({k: v for k, v in TINY.items() if k not in keys}, path)


def document(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")


def flipped(path):
    torch.save(TINY, path)
    content = bytearray(path.read_bytes())
    content[content.index(TINY["patch_embed.norm.bias"].numpy().tobytes()) + 9] ^= 4
    path.write_bytes(content)


def itself(path):
    state = {}
    state["model"] = state
    torch.save(state, path)


def deep(path):
    """Lists in lists."""
    many = 100_000
    write(path, torch_zip(b"\x80\x02}X\x05\0\0\0model" + b"]" * many + b"a" * (many - 1) + b"s."))


def methods(path):
    """An object whose attributes stand before its class's methods."""
    shadows = b"".join(b"X%c\0\0\0%bK\x03" % (len(n), n) for n in (b"get", b"items", b"keys"))
    write(path, torch_zip(b"\x80\x02ccollections\nOrderedDict\n)R}(" + shadows + b"ub."))


BAD_FILES = {
    "folder": (no_weights, "is a folder"),
    "plain pickle": (lambda p: write(p, pickle.dumps({"a": 1})), "cannot be read"),
    "a number": (lambda p: torch.save(3, p), "holds a int"),
    "no tensors": (lambda p: torch.save({"epoch": 3}, p), "holds no weights: found epoch"),
    "another network": (
        lambda p: torch.save({"conv1.weight": torch.zeros(3)}, p),
        "no Hire-MLP backbone; its first keys are conv1.weight",
    ),
    "exploit": (lambda p: torch.save({"model": TINY, "args": Exploit()}, p), "would run code"),
    "bare exploit": (lambda p: torch.save(Exploit(), p), "would run code"),
    "missing tensor": (without("network.4.1.mlp.fc1.weight"), "lacks stages.2.blocks.1.mlp.fc1"),
    "half a norm": (without("norm.bias"), "lacks norm3.bias"),
    "wrong shape": (
        damage("patch_embed.proj.weight", lambda w: w[:, :1]),
        "stem.proj.weight has shape (64, 1, 7, 7), the network needs (64, 3, 7, 7)",
    ),
    "wrong region": (damage("network.2.0.attn.mlp_h1.weight", lambda w: w[:, :256]), "has shape"),
    "odd region": (damage("network.2.0.attn.mlp_w1.weight", lambda w: w[:, :250]), "has shape"),
    "not a number": (damage("network.0.0.mlp.fc1.bias", lambda b: b * float("nan")), "NaN or Inf"),
    "infinite": (damage("norm.running_var", lambda b: b / 0), "NaN or Inf"),
    "a Swin": (
        lambda p: torch.save({**TINY, "layers.0.blocks.0.attn.qkv.weight": torch.zeros(3)}, p),
        "key layers.0.blocks.0.attn.qkv.weight is not one of Hire-MLP",
    ),
    "sparse": (
        lambda p: torch.save({k: v.to_sparse() if v.ndim else v for k, v in TINY.items()}, p),
        "patch_embed.proj.weight is a sparse or nested tensor; expected a plain tensor",
    ),
    "nested": (
        damage("norm.bias", lambda b: torch.nested.nested_tensor([b, b[:3]])),
        "norm.bias is a sparse or nested tensor",
    ),
    "quantized": (
        damage("norm.bias", lambda b: torch.quantize_per_tensor(b, 0.1, 0, torch.qint8)),
        "norm.bias is a quantized tensor",
    ),
    "meta": (damage("norm.bias", lambda b: b.to("meta")), "norm.bias is a tensor without its num"),
    "integers": (
        damage("norm.bias", lambda b: b.to(torch.int8)),
        "norm3.bias is of torch.int8, the network needs torch.float32",
    ),
    "complex": (damage("norm.bias", lambda b: b.cfloat()), "norm3.bias is of torch.complex64"),
    "zero size": (damage("norm.bias", lambda b: b[:0]), "norm3.bias has shape (0,), the network"),
    "too large for float32": (
        damage("norm.bias", lambda b: b.double() + 1e300),
        "norm3.bias holds NaN or Inf as torch.float32",
    ),
    "expanded": (
        damage("norm.bias", lambda b: torch.ones(1).expand(512)),
        "norm.bias is a tensor of 512 numbers of which the file holds fewer",
    ),
    "web page": (lambda p: write(p, b"<!DOCTYPE html><html>Not Found"), "it is a web page"),
    "error message": (lambda p: write(p, b"rate limit\n"), "text that begins with 'rate limit'"),
    "document": (document, "a zip archive of something else (it holds word/document.xml)"),
    "TorchScript": (
        lambda p: torch.jit.save(torch.jit.script(torch.nn.ReLU()), p),
        "it is a TorchScript program",
    ),
    "protocol 4": (lambda p: torch.save(TINY, p, pickle_protocol=4), "expected torch.save's own"),
    "a flipped bit": (flipped, "data/3 in it fails its checksum"),
    "names that are no text": (
        lambda p: torch.save({**TINY, 3: torch.zeros(1)}, p),
        "holds no weights: found patch_emb",
    ),
    "itself": (itself, "holds no weights: found model"),
    "deep": (deep, "holds no weights: found model"),
    "a name of megabytes": (
        lambda p: torch.save({**TINY, "x" * 3_000_000: torch.zeros(1)}, p),
        "xxx... is not one of Hire-MLP",
    ),
    "a name for a terminal": (
        lambda p: torch.save({**TINY, "\x1b[2J\r\nerror: all is well": torch.zeros(1)}, p),
        "key ?[2J??error: all is well is not one of Hire-MLP",
    ),
    "a large number": (
        lambda p: torch.save({**TINY, f"network.{'9' * 5000}8.0.norm1.bias": torch.zeros(1)}, p),
        "is not one of Hire-MLP",
    ),
    "methods of its own": (methods, "holds no weights: found nothing"),
    "another size": (lambda p: torch.save(classifier_state("small"), p), "depths 3,4,10,3"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, message = BAD_FILES[kind]
    path = tmp_path / "file.pth"
    make(path)
    with pytest.raises(CheckpointError) as error:
        pretrained(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(path)) + 350
    assert not os.path.exists("exploited")


def test_same_keys_other_widths(tmp_path):
    """As Base and Large have: shapes tell them apart."""
    torch.save(HireMLPNet(NANO | dict(dims=(8, 16, 24, 32))).state_dict(), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"dims 8,16,24,32, this one has .* 8,12,16,20; set"):
        load_weights(HireMLPNet(NANO), tmp_path / "file.pth")


def test_batchnorm_file_into_a_groupnorm_network(official):
    with pytest.raises(CheckpointError, match="norm_cfg or arch is another"):
        pretrained(official, norm_cfg=dict(type="GN", num_groups=8))


def test_a_list_of_init_cfg(official):
    """Also in a list, Pretrained is strict; the other kinds are mmengine's."""
    constant = dict(type="Constant", layer="Conv2d", val=0.5)
    model = HireMLP("tiny", init_cfg=[dict(type="Pretrained", checkpoint=str(official)), constant])
    model.init_weights()
    assert_loaded(model)
    with pytest.raises(FileNotFoundError):
        HireMLP("tiny", init_cfg=[dict(type="Pretrained", checkpoint="gone.pth")]).init_weights()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth not found"):
        pretrained(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("init_cfg", [dict(type="Pretrained"), dict(checkpoint="x", key="y")])
def test_odd_init_cfg(init_cfg):
    with pytest.raises(CheckpointError, match="expected dict"):
        HireMLP(NANO, init_cfg=dict(type="Pretrained") | init_cfg).init_weights()


@pytest.fixture
def downloads(official, tmp_path, monkeypatch):
    """The URLs that are downloaded into torch hub's folder; at each there is the official file."""
    fetched = []

    def download(url, target, **_):
        fetched.append(url)
        shutil.copy(official, target)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return fetched


def test_url_is_downloaded_once(downloads):
    """A published name is its URL."""
    assert_loaded(pretrained("hire-mlp://tiny"))
    assert_loaded(pretrained(weights.WEIGHTS["tiny"].url))
    assert downloads == [weights.WEIGHTS["tiny"].url]
    other = "https://elsewhere/hire_mlp_tiny.pth"  # the same name, another file
    pretrained(other)
    assert downloads[1:] == [other]
    write(Path(cached_path(other)), b"<html>busy</html>")
    with pytest.raises(CheckpointError, match=r"web page.*delete it to download again"):
        pretrained(other)


def test_checksum_is_compared_before_anything_is_read(official, downloads, monkeypatch):
    """Of a record, and in a URL's file name by torch hub's custom."""
    digest = hashlib.sha256(official.read_bytes()).hexdigest()
    tiny = weights.WEIGHTS["tiny"]
    monkeypatch.setitem(weights.WEIGHTS, "tiny", dataclasses.replace(tiny, sha256=digest))
    by_name = f"https://host/a-{digest[:8]}.pth"
    for url in ("hire-mlp://tiny", by_name, "https://host/a-20240131.pth"):
        assert_loaded(pretrained(url))
    no_weights = hashlib.sha256(b"no weights").hexdigest()
    for source, url, expected in (
        ("hire-mlp://tiny", tiny.url, digest),
        (by_name, by_name, digest[:8]),
    ):
        write(Path(cached_path(url)), b"no weights")
        with pytest.raises(CheckpointError, match="delete it to download again") as error:
            pretrained(source)
        said = f"{cached_path(url)} is not read: its SHA-256 is {no_weights}, expected {expected};"
        assert f"{said} it is damaged or another file" in str(error.value)
    with pytest.raises(CheckpointError, match="expected ffff"):
        read_checkpoint(official, sha256="ffff")


def test_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match="download it by hand"):
        pretrained("http://localhost:9/hire_mlp_tiny.pth")
    assert not list((tmp_path / "checkpoints").iterdir())


def test_records_are_of_known_archs():
    for name, record in weights.WEIGHTS.items():
        assert record.arch == name
        assert name in ARCHS
        assert record.url.startswith("https://")


@pytest.mark.parametrize("classifier", [False, True])
def test_converter(official, classifier, tmp_path, fork_tool):
    target = tmp_path / "converted.pth"
    options = ["--classifier"] if classifier else []
    done = fork_tool("tools/convert_checkpoint.py", official, target, *options)
    assert done.returncode == 0, done.stderr
    assert f"wrote {415 if classifier else 413} tensors" in done.stdout
    assert_loaded(pretrained(target))
    assert [path.name for path in tmp_path.iterdir()] == ["converted.pth"]
    again = fork_tool("tools/convert_checkpoint.py", official, target, *options)
    assert again.returncode == 2
    assert again.stderr.strip().splitlines() == [
        f"convert_checkpoint.py: error: {target} exists already; name a new file"
    ]


@pytest.mark.parametrize(
    ("make", "target", "message"),
    [
        (without("norm2.bias"), "gone/out.pth", "folder {}/gone not found"),
        (without("norm2.bias"), "out.safetensors", "expected a name that ends in .pth"),
        (without("network.0.0.norm2.bias"), "out.pth", "lacks stages.0.blocks.0.norm2.bias"),
    ],
)
def test_converter_refuses(make, target, message, tmp_path, fork_tool):
    make(tmp_path / "file.pth")
    done = fork_tool("tools/convert_checkpoint.py", tmp_path / "file.pth", tmp_path / target)
    assert done.returncode == 2
    assert message.format(tmp_path) in done.stderr
    assert not (tmp_path / "out.pth").exists()


def test_converter_on_a_full_disk_and_beside_others(official, tmp_path, fork_tool, monkeypatch):
    """Nothing is left of it, and nothing of somebody else's is touched."""
    target = tmp_path / "out.pth"
    others = tmp_path / "out.pth.part"
    others.write_text("somebody else's")
    command = f"ulimit -f 2000; exec {sys.executable} tools/convert_checkpoint.py $0 $1"
    done = subprocess.run(
        ["bash", "-c", command, str(official), str(target)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    error = f"convert_checkpoint.py: error: cannot write {target}: File too large"
    assert done.stderr.splitlines()[-1] == error
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == [others.name]

    save = torch.save

    def save_beside_others(*args):
        target.write_text("made meanwhile")
        save(*args)

    monkeypatch.setattr(torch, "save", save_beside_others)
    for links in (True, False):
        if not links:  # a file system that has none
            monkeypatch.setattr(os, "link", no_links)
        with pytest.raises(UserError, match="exists already"):
            convert(str(official), str(target))
        assert target.read_text() == "made meanwhile"
        target.unlink()
    monkeypatch.setattr(torch, "save", save)
    convert(str(official), str(target))
    assert_loaded(pretrained(target))
    assert sorted(os.listdir(tmp_path)) == sorted([target.name, others.name])
    assert others.read_text() == "somebody else's"


def no_links(*_):
    raise PermissionError(1, "Operation not permitted")
