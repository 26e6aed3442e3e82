"""Whatever a weight file holds: is it read right, or one of the errors that are promised?

`make fuzz` has 10,000 examples of each kind, the tests a few.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as as_safetensors

from hire_mlp_mm import HireMLPNet, load_weights
from hire_mlp_mm.checkpoint import (
    CheckpointError,
    convert_state_dict,
    read_backbone,
    read_checkpoint,
)
from tests.conftest import NANO
from tests.hostile import torch_zip

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "120"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
pytestmark = pytest.mark.timeout(7200 if EXAMPLES > 1000 else 300)

EXPECTED = HireMLPNet(NANO).state_dict()
SMALL = {"stem.proj.weight": torch.randn(16, 3, 4, 4), "norm0.bias": torch.arange(6.0)[1:4]}


def saved(data: object, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(data, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


HONEST = [
    (saved(SMALL), SMALL),
    (saved({"model": SMALL, "epoch": 3, "lr": [0.1, None, ("a", 2)]}), SMALL),
    (saved({"state_dict": {f"module.{k}": v for k, v in SMALL.items()}}, legacy=True), SMALL),
    (as_safetensors({key: value.clone() for key, value in SMALL.items()}), SMALL),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file.pth"


def check_line(error: CheckpointError, path: str = "") -> None:
    """An error is one line, which names the file."""
    assert path in str(error)
    assert str(error).isprintable()
    assert len(str(error)) < len(path) + 600


def read(path, content: bytes) -> dict[str, torch.Tensor] | None:
    """What is in a file, or None for one of the errors; each is one line that names the file."""
    path.write_bytes(content)
    state = None
    for reader in (read_backbone, read_checkpoint):
        try:
            state = reader(path)
        except CheckpointError as error:
            state = None
            check_line(error, str(path))
    return state


@st.composite
def changes(draw, content: bytes) -> bytes:
    """A file with bytes flipped, cut out, put in, copied to another place, or its end missing."""
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "cut", "insert", "copy", "end", "number"]))
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.integers(1, 64))
        before, after = content[:at], content[at:]
        if kind == "flip" and after:
            content = before + bytes([after[0] ^ 1 << draw(st.integers(0, 7))]) + after[1:]
        elif kind == "cut":
            content = before + after[length:]
        elif kind == "insert":
            content = before + draw(st.binary(min_size=1, max_size=64)) + after
        elif kind == "copy":
            to = draw(st.integers(0, len(content)))
            content = content[:to] + after[:length] + content[to:]
        elif kind == "end":
            content = before
        else:
            number = draw(st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\x7f", b"\0" * 8, b"."]))
            content = before + number + after[len(number) :]
    return content


@fuzz
@given(st.data())
def test_a_damaged_file(path, data):
    """Torch's archive has checksums: it is read as it was, or not at all."""
    content, state = data.draw(st.sampled_from(HONEST))
    found = read(path, data.draw(changes(content)))
    if found is not None and content.startswith(b"PK"):
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


@fuzz
@given(st.data())
def test_a_damaged_pickle_in_a_whole_file(path, data):
    """Past the checksums: what somebody writes who knows them."""
    with zipfile.ZipFile(io.BytesIO(HONEST[1][0])) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = data.draw(st.sampled_from([*entries, *["archive/data.pkl"] * 9]))
    entries[name] = data.draw(changes(entries[name]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    read(path, buffer.getvalue())


ODD_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.binary(max_size=9)
)
KEYS = st.one_of(
    ODD_VALUES.filter(lambda key: key == key),
    st.tuples(ODD_VALUES, ODD_VALUES),
    st.sampled_from(
        ["state_dict", "model", "model_ema", "module.x", "stem.proj.weight", "norm.bias"]
    ),
)
TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=5),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.bool,
                     torch.complex64, torch.float8_e4m3fn]),
)  # fmt: skip
TREES = st.recursive(
    ODD_VALUES | TENSORS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4), st.tuples(inner)
    ),
    max_leaves=12,
)


@fuzz
@given(st.dictionaries(KEYS, TREES, max_size=5) | TREES, st.booleans())
def test_odd_content(path, content, legacy):
    read(path, saved(content, legacy))


@fuzz
@given(st.integers(0, 5), TREES)
@example(2, {"stem.proj.weight": 3})
def test_a_pickle_of_another_protocol(path, protocol, content):
    read(path, torch_zip(pickle.dumps(content, protocol=protocol)))
    read(path, pickle.dumps(content, protocol=protocol))


PARTS = st.sampled_from(
    ["network", "stages", "blocks", "patch_embed", "stem", "proj", "norm", "norm1", "norm6",
     "attn", "mlp", "fc1", "mlp_h1", "mlp_w1", "mlp_c", "mlp_h1_norm", "token_mixer", "height",
     "reduce", "reweight", "head", "downsample", "weight", "bias", "num_batches_tracked",
     "module", "backbone", "0", "1", "2", "6", "07", "99", "٣", "9" * 5000, "", "\n", "\x1b[31m"]
)  # fmt: skip
REFERENCE = st.builds(
    lambda stage, block, layer, leaf: f"network.{stage}.{block}.{layer}.{leaf}",
    st.integers(0, 12), st.integers(0, 40),
    st.sampled_from(["norm1", "mlp.fc1", "attn.mlp_h1", "attn.mlp_w1", "attn.mlp_c", "attn.proj"]),
    st.sampled_from(["weight", "bias", "running_var"]),
)  # fmt: skip
NAMES = st.one_of(
    REFERENCE,
    st.lists(PARTS, min_size=1, max_size=6).map(".".join),
    st.sampled_from(list(EXPECTED)),
    st.text(max_size=12),
)


ODD_NAMES = st.dictionaries(NAMES, TENSORS, max_size=8)


@fuzz
@given(ODD_NAMES)
def test_odd_names(state):
    """The input of a conversion stays as it was, and the errors are known."""
    before = dict(state)
    try:
        convert_state_dict(state)
    except CheckpointError as error:
        check_line(error)
    assert state.keys() == before.keys()
    assert all(state[key] is before[key] for key in state)


@fuzz
@given(st.data())
def test_a_network_with_something_changed(path, data):
    """One change to whole weights: they fit, or the error is a line that says where."""
    state = dict(EXPECTED)
    key = data.draw(st.sampled_from(list(state)))
    change = data.draw(st.sampled_from(["add", "drop", "rename", "replace", "nan"]))
    value = state[key] if change == "add" else state.pop(key)
    if change == "add":
        state |= data.draw(ODD_NAMES)
    elif change == "rename":
        state[data.draw(NAMES)] = value
    elif change == "replace":
        state[key] = data.draw(TENSORS)
    elif change == "nan":
        state[key] = value * float("nan")
    path.write_bytes(saved(state))
    net = HireMLPNet(NANO)
    try:
        load_weights(net, path)
    except CheckpointError as error:
        check_line(error, str(path))
    else:
        loaded = {key: value for key, value in net.state_dict().items() if key in state}
        assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in loaded.items())
        assert all(value.isfinite().all() for value in loaded.values())
