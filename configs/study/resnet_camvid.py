_base_ = ["./_base_/camvid.py", "./_base_/resnet.py"]

model = dict(
    backbone=dict(_delete_=True, **_base_.backbone, out_indices=_base_.maps),
    decode_head=dict(in_channels=list(_base_.dims)),
    auxiliary_head=dict(in_channels=_base_.dims[2]),
)
