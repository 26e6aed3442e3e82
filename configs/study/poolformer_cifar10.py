_base_ = ["./_base_/cifar10.py", "./_base_/poolformer.py"]

model = dict(
    backbone=dict(**_base_.backbone, out_indices=_base_.maps[-1:]),
    head=dict(in_channels=_base_.dims[-1]),
)
