_base_ = ["./_base_/bccd.py", "./_base_/poolformer.py"]

model = dict(
    backbone=dict(_delete_=True, **_base_.backbone, out_indices=_base_.maps[1:]),
    neck=dict(in_channels=list(_base_.dims[1:])),
)
