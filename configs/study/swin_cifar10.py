"""Windows of 4 tokens, and of 2 on the last map, for maps of 16 to 2 tokens a side."""

_base_ = ["./_base_/cifar10.py", "./_base_/swin.py"]

width, windows = dict(
    nano=(28, dict(window_size=4, stage_cfgs=[dict(), dict(), dict(), dict(window_size=2)])),
    paper=(96, dict()),
)["{{$STUDY_SIZE:nano}}"]
arch = dict(_base_.arch, embed_dims=width)
model = dict(
    backbone=dict(_base_.backbone, arch=arch, **windows, out_indices=_base_.maps[-1:]),
    head=dict(in_channels=8 * width),
)
