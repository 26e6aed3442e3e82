"""Do the examples of docs/torchvision.md train and predict, as they stand, with torchvision?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from hire_mlp_mm import HireMLPNet, from_pretrained
from hire_mlp_mm.errors import CheckpointError
from hire_mlp_mm.fuse import fuse
from hire_mlp_mm.weights import WEIGHTS, cached_path
from tests.conftest import NANO, ROOT

PAGE = (ROOT / "docs/torchvision.md").read_text()
START, *EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
SHALLOW = dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))  # with the paper's regions and shifts


@pytest.fixture(autouse=True)
def published(tmp_path, monkeypatch) -> Path:
    """The file that the page names, of a small network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = Path(cached_path(WEIGHTS["tiny"].url))
    path.parent.mkdir()
    torch.save(HireMLPNet(SHALLOW).state_dict(), path)
    return path


def run(block: str, names: dict) -> dict:
    """A block of the page, but that the detectors take images as small as they come."""
    block = block.replace("num_classes=91", "num_classes=91, min_size=96, max_size=128")
    exec(compile(block, "torchvision.md", "exec"), names)
    return names


def test_the_page_says_what_a_network_gives(capsys):
    run(START.replace('"hire-mlp://tiny"', '"tiny"').replace("from_pretrained", "HireMLPNet"), {})
    assert f"# {capsys.readouterr().out.strip()}" in START


def test_every_example_trains_every_parameter_of_the_backbone():
    names: dict = {}
    for block in EXAMPLES:
        model = run(block, names)["model"]
        for name, parameter in names["net"].named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        assert any(parameter is next(names["net"].parameters()) for parameter in model.parameters())
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("which", [0, 2], ids=["detector", "segmentor"])
def test_the_fused_copy_predicts_the_same(which):
    model = run(EXAMPLES[which], {})["model"].eval()
    image = torch.rand(3, 96, 128)
    images = [image] if which == 0 else image[None]
    with torch.no_grad():
        plain, fused = model(images), fuse(model)(images)
    given, expected = (fused[0], plain[0]) if which == 0 else (fused, plain)
    for key in expected:
        torch.testing.assert_close(given[key], expected[key], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, dict(out_indices=(1, 3), drop_path_rate=0.1)])
def test_a_network_of_the_size_of_its_file(published, options):
    net = from_pretrained(published, **options)
    given = torch.load(published)
    assert (net.arch.depths, net.arch.dims) == (SHALLOW["depths"], SHALLOW["dims"])
    assert all(torch.equal(given[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (lambda key: key.startswith("stem"), "holds no block"),
        (lambda key: "blocks.0.mlp" not in key, "mlp"),
    ],
)
def test_half_a_file_is_refused(published, keep, said):
    given = torch.load(published)
    torch.save({key: value for key, value in given.items() if keep(key)}, published)
    with pytest.raises(CheckpointError, match=said) as caught:
        from_pretrained(published)
    assert published.name in str(caught.value)


def test_a_file_of_other_regions_is_refused(published):
    torch.save(HireMLPNet({**NANO, "region_sizes": (2, 2, 2, 2)}).state_dict(), published)
    with pytest.raises(CheckpointError, match="the network needs"):
        from_pretrained(published)
