"""Cascade Mask R-CNN with narrow heads on a small HireMLP, from scratch; part of `make demo`.

Data: 400 images of tools/shapes.py, 100 held out. 260 iterations of 8 images.
Measured, seed 0: 0.720 box AP, 0.953 box AP50, 0.727 mask AP, 0.949 mask AP50; 5.3 M
parameters.

    python tools/shapes.py FOLDER
    SHAPES_ROOT=FOLDER/ python tools/train.py configs/cascade_mask_rcnn_hire_nano_shapes.py
"""

_base_ = ["./_base_/cascade_mask_rcnn.py", "./_base_/shapes_detection.py"]

dims = (32, 64, 128, 192)
channels = 64
num_classes = 3
narrow = dict(in_channels=channels, conv_out_channels=channels, num_classes=num_classes)
box_head = dict(narrow, num_shared_convs=2, fc_out_channels=256)
rcnn = [dict(stage, sampler=dict(stage.sampler, num=32)) for stage in _base_.model.train_cfg.rcnn]

model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=(2, 2, 2, 2), dims=dims)),
    neck=dict(in_channels=list(dims), out_channels=channels),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4]),  # anchors from 16 pixels up
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, roi_layer=dict(sampling_ratio=1)),
        bbox_head=[dict(head, **box_head) for head in _base_.model.roi_head.bbox_head],
        mask_roi_extractor=dict(out_channels=channels),
        mask_head=dict(narrow, num_convs=2),
    ),
    # 2 to 5 objects per image need few proposals, and the heads' time is proportional to them: to
    # those that are sampled, and for the mask heads to the positive quarter of these.
    train_cfg=dict(rpn_proposal=dict(nms_pre=200, max_per_img=64), rcnn=rcnn),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=48), rcnn=dict(max_per_img=20)),
)
