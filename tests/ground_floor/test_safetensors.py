"""Is a safetensors file read like any other weight file, and a damaged one said in a line?"""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save, save_file

from hire_mlp_mm import HireMLP, HireMLPNet, load_weights
from hire_mlp_mm.checkpoint import (
    CheckpointError,
    convert_state_dict,
    read_backbone,
    read_checkpoint,
)
from tests.conftest import NANO
from tests.reference import classifier_state

SMALL = {"stem.proj.weight": torch.randn(16, 3, 4, 4), "norm0.bias": torch.arange(3.0)}


@pytest.mark.parametrize("name", ["file.safetensors", "file.pth", "file"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_weights_are_the_same(name, prefix, tmp_path):
    """By its content, whatever its name."""
    net, other = HireMLPNet(NANO), HireMLP(NANO)
    state = {f"{prefix}{key}": value for key, value in net.state_dict().items()}
    save_file(state, tmp_path / name, metadata={"format": "pt"})
    said = str(load_weights(other, tmp_path / name))
    assert said == f"{tmp_path / name}: loaded {len(state)} tensors"
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in other.state_dict().items())


def test_an_official_file_converted_by_others(tmp_path):
    """The reference's names, and numbers of 16 bits."""
    state = {
        k: v.half() if v.is_floating_point() else v for k, v in classifier_state("tiny").items()
    }
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "f.safetensors")
    found = read_backbone(tmp_path / "f.safetensors")
    expected = convert_state_dict(state)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_what_was_read_outlives_the_file(tmp_path):
    save_file(SMALL, tmp_path / "file")
    found = read_checkpoint(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"x" * (tmp_path / "file").stat().st_size)
    assert all(torch.equal(found[key], SMALL[key]) for key in SMALL)
    assert {v.untyped_storage().nbytes() for v in found.values()} == {4 * 16 * 3 * 16, 12}


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None, lambda storage, _: storage])
def test_devices_as_torch_load_takes_them(device, guarded, tmp_path):
    from mmengine.runner import CheckpointLoader

    save_file(SMALL, tmp_path / "file")
    found = CheckpointLoader.load_checkpoint(str(tmp_path / "file"), map_location=device)
    assert torch.equal(found["norm0.bias"], SMALL["norm0.bias"])


HEADER = b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,%s]}}'


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


DAMAGED = {
    "cut short": save(SMALL)[:-4],
    "header": with_header(b'{"a":{"x":1}}   ', bytes(8)),
    "json": with_header(b"{" * 100),
    "too large a shape": with_header(HEADER % (b"9" * 18, b"4"), bytes(4)),
    "beyond the file": with_header(HEADER % (b"4", b"16"), bytes(4)),
    "a kind of number": with_header(
        b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_a_line(kind, tmp_path):
    (tmp_path / "file.safetensors").write_bytes(DAMAGED[kind])
    with pytest.raises(CheckpointError, match="it is a damaged safetensors file") as error:
        read_checkpoint(tmp_path / "file.safetensors")
    assert str(tmp_path / "file.safetensors") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_without_the_library_a_line_says_so(tmp_path, monkeypatch):
    save_file(SMALL, tmp_path / "file")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / "file")
    assert str(error.value) == (
        f"{tmp_path / 'file'} cannot be read: it is a safetensors file, and the library for those "
        f"is missing; pip install safetensors"
    )
