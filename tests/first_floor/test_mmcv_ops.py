"""Do torchvision's kernels stand in for mmcv's, and only where they must?"""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch
import torchvision
from mmcv.ops import (
    CARAFE,
    RoIAlign,
    batched_nms,
    deform_conv2d,
    modulated_deform_conv2d,
    nms,
)

from hire_mlp_mm import mmcv_ops

COMPILED = mmcv_ops.describe().endswith(": compiled ops")
stand_in_only = pytest.mark.skipif(COMPILED, reason="this mmcv has compiled ops of its own")


def naive_nms(boxes, scores, threshold, offset):
    order, kept = list(np.argsort(-scores)), []
    while order:
        best = order.pop(0)
        kept.append(best)

        def overlap(i, best=best):
            a, b = boxes[i], boxes[best]
            w = min(a[2], b[2]) - max(a[0], b[0]) + offset
            h = min(a[3], b[3]) - max(a[1], b[1]) + offset
            inter = max(w, 0) * max(h, 0)
            areas = [(c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b)]
            return inter / (sum(areas) - inter)

        order = [i for i in order if overlap(i) <= threshold]
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms_equals_the_definition(offset, threshold):
    corners = torch.rand(80, 2) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(80, 2) * 30], 1)
    scores = torch.rand(80)
    dets, kept = nms(boxes, scores, threshold, offset=offset)
    expected = naive_nms(boxes.double().numpy(), scores.numpy(), threshold, offset)
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_batched_nms_keeps_classes_apart():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [1, 1, 10, 10]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
    _, kept = batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.5))
    assert kept.tolist() == [0, 1]


def test_nms_without_boxes():
    dets, kept = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)


def naive_roi_align(feature, roi, size, scale, ratio):
    """One RoI on one (C, H, W) map, aligned, average of ratio x ratio bilinear samples per bin."""
    C, H, W = feature.shape
    x1, y1, x2, y2 = (v * scale - 0.5 for v in roi)
    out = np.zeros((C, size, size))
    for i in range(size):
        for j in range(size):
            for a in range(ratio):
                for b in range(ratio):
                    y = y1 + (i + (a + 0.5) / ratio) * (y2 - y1) / size
                    x = x1 + (j + (b + 0.5) / ratio) * (x2 - x1) / size
                    if not (-1 <= y <= H and -1 <= x <= W):
                        continue
                    y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
                    y0, x0 = int(y), int(x)
                    yn, xn = min(y0 + 1, H - 1), min(x0 + 1, W - 1)
                    fy, fx = y - y0, x - x0
                    top = feature[:, y0, x0] * (1 - fx) + feature[:, y0, xn] * fx
                    low = feature[:, yn, x0] * (1 - fx) + feature[:, yn, xn] * fx
                    out[:, i, j] += (top * (1 - fy) + low * fy) / ratio**2
    return out


def test_roi_align_equals_the_definition():
    features = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    rois = torch.tensor([[0, 1.0, 2, 30, 25], [1, 5, 5, 40, 35]], dtype=torch.float64)
    out = RoIAlign(4, 0.25, sampling_ratio=2)(features, rois)
    for k, roi in enumerate(rois.numpy()):
        expected = naive_roi_align(features[int(roi[0])].numpy(), roi[1:], 4, 0.25, 2)
        np.testing.assert_allclose(out[k].numpy(), expected, atol=1e-12)


# In pixels of an image of 800 x 640: usual ones, and those at which kernels have their cases.
BOXES = [
    *((x, y, x + side, y + 0.7 * side + 3) for x, y, side in
      zip(range(5, 600, 23), range(580, 20, -17), range(2, 210, 8), strict=False)),
    (0, 0, 800, 640), (-90, -70, 60, 50), (700, 600, 990, 880), (900, 700, 950, 750),
    (40, 40, 40, 40), (60, 60, 30, 90), (3.5, 3.5, 3.6, 600), (-3000, -3000, 3000, 3000),
]  # fmt: skip


@stand_in_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_roi_align_equals_torchvisions(ratio, aligned, layout, dtype):
    x = torch.randn(2, 5, 40, 50, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    numbers = torch.arange(len(BOXES)) % 2
    rois = torch.cat([numbers[:, None], torch.tensor(BOXES)], 1).to(dtype)
    ours = RoIAlign((3, 7), 1 / 16, ratio, aligned=aligned)(x, rois)
    theirs = torchvision.ops.roi_align(x, rois, (3, 7), 1 / 16, ratio, aligned)
    given = torch.randn_like(ours)
    gradients = [torch.autograd.grad(out, x, given)[0] for out in (ours, theirs)]
    near = dict(rtol=1e-5, atol=1e-5) if dtype == torch.float32 else dict(rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours, theirs, **near)
    torch.testing.assert_close(*gradients, **near)


@stand_in_only
@pytest.mark.parametrize("boxes", [[], [(40, 40, 40, 40)], [(0, 0, 4000, 4000)]])
def test_roi_align_without_usual_rois(boxes):
    rois = torch.tensor([(0, *box) for box in boxes]).view(-1, 5).float()
    x = torch.rand(1, 2, 8, 9, requires_grad=True)
    out = RoIAlign(7, 0.25)(x, rois)
    out.sum().backward()
    assert out.shape == (len(boxes), 2, 7, 7)
    assert x.grad.isfinite().all()


def test_roi_align_gradient():
    features = torch.rand(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 2, 20, 18]], dtype=torch.float64)
    layer = RoIAlign(3, 0.25, sampling_ratio=2)
    assert torch.autograd.gradcheck(lambda x: layer(x, rois), features)


@stand_in_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    features = torch.rand(1, 2, 6, 7).to(dtype).requires_grad_()
    rois = torch.tensor([[0, 1.0, 2, 20, 18]], dtype=dtype)
    out = RoIAlign(3, 0.25, sampling_ratio=2)(features, rois)
    out.sum().backward()
    assert out.dtype == features.grad.dtype == dtype
    exact = RoIAlign(3, 0.25, sampling_ratio=2)(features.float(), rois.float())
    assert (out - exact).abs().max() < 0.02
    boxes, scores = rois[:, 1:].expand(3, 4).contiguous(), torch.rand(3).to(dtype)
    assert len(nms(boxes, scores, 0.5)[1]) == 1


def naive_deform_conv(x, offset, mask, weight, stride, padding, dilation):
    """One image, one group of offsets: each tap samples where its offset points, bilinearly."""
    C, H, W = x.shape
    kh, kw = weight.shape[2:]
    _, h, w = offset.shape
    out = np.zeros((len(weight), h, w))
    for i, j, a, b in np.ndindex(h, w, kh, kw):
        tap = a * kw + b
        y = i * stride - padding + a * dilation + offset[2 * tap, i, j]
        z = j * stride - padding + b * dilation + offset[2 * tap + 1, i, j]
        sample = np.zeros(C)
        for p in (int(np.floor(y)), int(np.floor(y)) + 1):
            for q in (int(np.floor(z)), int(np.floor(z)) + 1):
                if 0 <= p < H and 0 <= q < W:
                    sample += x[:, p, q] * (1 - abs(y - p)) * (1 - abs(z - q))
        out[:, i, j] += weight[:, :, a, b] @ sample * mask[tap, i, j]
    return out


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 2, 2)])
def test_deformable_convolution_equals_the_definition(modulated, stride, padding, dilation):
    x = torch.rand(2, 3, 7, 8, dtype=torch.float64)
    weight = torch.rand(4, 3, 3, 3, dtype=torch.float64)
    h, w = ((n + 2 * padding - 2 * dilation - 1) // stride + 1 for n in x.shape[2:])
    offset = torch.randn(2, 18, h, w, dtype=torch.float64)
    mask = torch.rand(2, 9, h, w, dtype=torch.float64) if modulated else torch.ones(2, 9, h, w)
    if modulated:
        bias = torch.rand(4, dtype=torch.float64)
        out = modulated_deform_conv2d(x, offset, mask, weight, bias, stride, padding, dilation)
        out = out - bias[:, None, None]
    else:
        out = deform_conv2d(x, offset, weight, stride, padding, dilation)
    for k in range(2):
        arrays = (t.numpy() for t in (x[k], offset[k], mask[k], weight))
        expected = naive_deform_conv(*arrays, stride, padding, dilation)
        np.testing.assert_allclose(out[k].numpy(), expected, atol=1e-12)


@stand_in_only
def test_offsets_that_are_not_numbers_sample_nothing():
    x, weight = torch.rand(1, 2, 6, 6), torch.rand(3, 2, 3, 3)
    offset = torch.zeros(1, 18, 6, 6)
    offset[0, 0, 2, 3], offset[0, 7, 4, 4] = float("nan"), float("inf")  # of taps 0 and 3
    outputs = []
    for value in (offset, torch.where(offset == 0, offset, torch.tensor(99.0))):
        leaf = value.clone().requires_grad_()
        out = deform_conv2d(x, leaf, weight, 1, 1)
        out.sum().backward()
        outputs += [out.detach(), leaf.grad]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert outputs[0].isfinite().all()


def test_deformable_convolution_gradients():
    def rand(*shape):
        return torch.rand(*shape, dtype=torch.float64, requires_grad=True)

    # Two groups of channels and two of offsets; samples stay off the grid's lines.
    x, weight, bias = rand(2, 4, 4, 5), rand(4, 2, 3, 3), rand(4)
    offset = (torch.rand(2, 36, 4, 5, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    geometry = (1, 1, 1, 2, 2)
    v1 = (x, offset, weight)
    assert torch.autograd.gradcheck(lambda *t: deform_conv2d(*t, *geometry), v1)
    v2 = (x, offset, rand(2, 18, 4, 5), weight, bias)
    assert torch.autograd.gradcheck(lambda *t: modulated_deform_conv2d(*t, *geometry), v2)


@stand_in_only
def test_a_missing_op_names_itself_and_the_cure():
    layer = CARAFE(3, 1, 2)
    with pytest.raises(mmcv_ops.MissingOpError, match="carafe_forward") as error:
        layer(torch.rand(1, 4, 8, 8), torch.rand(1, 9, 16, 16))
    assert "MMCV_WITH_OPS=1" in str(error.value)
    with pytest.raises(mmcv_ops.MissingOpError, match="pool_mode='max'"):
        RoIAlign(3, 1.0, pool_mode="max")(torch.rand(1, 1, 4, 4), torch.rand(1, 5))


@stand_in_only
def test_the_stand_in_looks_like_a_module():
    from mmcv.utils import ext_loader

    assert importlib.util.find_spec("mmcv._ext") is not None
    assert importlib.util.find_spec("mmcv._other") is None  # none of its business
    assert ext_loader.check_ops_exist()
    assert "torchvision" in mmcv_ops.describe()
    before = list(sys.meta_path)
    mmcv_ops.install()
    assert sys.meta_path == before


@stand_in_only  # with real ones, this is what test_equal_to_the_compiled_ops begins with
def test_compiled_ops_are_left_alone(tmp_path, run_tool):
    """With a compiled mmcv._ext on mmcv's path (here a file), the stand-in is not asked."""
    (tmp_path / "_ext.py").write_text("origin = 'compiled'\n")
    code = (
        f"import mmcv; mmcv.__path__.append({str(tmp_path)!r})\n"
        "import sys\n"
        "from hire_mlp_mm import mmcv_ops\n"
        "import mmcv._ext\n"
        "assert mmcv._ext.origin == 'compiled'\n"
        "assert 'torchvision' not in sys.modules\n"
        "print(mmcv_ops.describe())\n"
    )
    done = run_tool("-c", code)
    assert done.stdout.strip().endswith("compiled ops"), done.stderr


def random_boxes(n):
    corners = torch.rand(n, 2) * 400
    return torch.cat([corners, corners + 4 + torch.rand(n, 2) * 200], 1)


def run_ops() -> dict[str, torch.Tensor]:
    """Results and gradients of every op of the stand-in, at a detector's sizes."""
    torch.manual_seed(0)
    boxes, scores = random_boxes(2000), torch.rand(2000)
    found = {f"nms, offset {i}": nms(boxes, scores, 0.5, offset=i)[1] for i in (0, 1)}
    rois = torch.cat([torch.randint(2, (200, 1)).float(), random_boxes(200)], 1)
    x, offset, mask = (
        torch.rand(2, 16, 40, 50),
        torch.randn(2, 18, 40, 50),
        torch.rand(2, 9, 40, 50),
    )
    weight, bias = torch.rand(8, 16, 3, 3), torch.rand(8)
    ops = {
        "roi_align": (RoIAlign(7, 0.1, sampling_ratio=0), (x,), (rois,)),
        "deform_conv": (deform_conv2d, (x, offset, weight), (1, 1)),
        "modulated": (modulated_deform_conv2d, (x, offset, mask, weight, bias), (1, 1)),
    }
    for name, (op, inputs, others) in ops.items():
        inputs = [one.clone().requires_grad_() for one in inputs]
        out = op(*inputs, *others)
        gradients = torch.autograd.grad(out, inputs, torch.rand_like(out))
        found |= {f"{name} {i}": one.detach() for i, one in enumerate((out, *gradients))}
    return found


@pytest.mark.skipif(not COMPILED, reason="this mmcv has no compiled ops to compare with")
def test_equal_to_the_compiled_ops(monkeypatch):
    import mmcv._ext

    assert not isinstance(mmcv._ext, mmcv_ops.StandIn)
    compiled = run_ops()
    stand_in = mmcv_ops.StandIn("mmcv._ext")
    vars(stand_in).update(mmcv_ops.OPS)
    for module in ("nms", "roi_align", "deform_conv", "modulated_deform_conv"):
        monkeypatch.setattr(sys.modules[f"mmcv.ops.{module}"], "ext_module", stand_in)
    ours = run_ops()
    for name, expected in compiled.items():
        if name.startswith("nms"):
            assert torch.equal(ours[name], expected), name
        else:  # other orders of summation
            torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-4, msg=name)
