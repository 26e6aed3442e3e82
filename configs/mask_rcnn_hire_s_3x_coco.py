"""Mask R-CNN, Hire-MLP-Small, COCO, 3x schedule, multi-scale training.

Published: 46.2 box AP, 42.0 mask AP (quoted in arXiv 2202.06510, table 11), 256 GFLOPs at
1280 x 800; 52.8 M parameters. Not rerun here.

The authors published no detection config. As for Cascade Mask R-CNN, this is the recipe of the
peers that the paper compares with (Swin and AS-MLP, 3x); `_base_/schedule_3x.py` has its values.

    bash tools/dist_train.sh configs/mask_rcnn_hire_s_3x_coco.py 8 --amp
"""

_base_ = [
    "./_base_/mask_rcnn.py",
    "./_base_/coco_instance_multiscale.py",
    "./_base_/schedule_3x.py",
    "./_base_/detection.py",
]

model = dict(
    backbone=dict(
        drop_path_rate=0.2,  # not published, for no size; Swin-S and AS-MLP-S use 0.2
        init_cfg=dict(type="Pretrained", checkpoint="hire-mlp://small"),
    )
)
