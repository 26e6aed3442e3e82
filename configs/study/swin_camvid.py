_base_ = ["./_base_/camvid.py", "./_base_/swin.py"]

model = dict(
    # The last map, 6 x 8, is smaller than a window.
    backbone=dict(_delete_=True, **_base_.backbone, pad_small_map=True, out_indices=_base_.maps),
    decode_head=dict(in_channels=list(_base_.dims)),
    auxiliary_head=dict(in_channels=_base_.dims[2]),
)
