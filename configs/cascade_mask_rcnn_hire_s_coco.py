"""Cascade Mask R-CNN, Hire-MLP-Small, COCO, 3x schedule, multi-scale training.

Published: 50.7 box AP, 44.2 mask AP (quoted in arXiv 2202.06510, table 11), 734 GFLOPs at
1280 x 800; 90.6 M parameters. Not rerun here.

The authors published no detection config. This is the recipe of the peers that the paper compares
with (Swin's Cascade Mask R-CNN 3x: AdamW 1e-4, weight decay 0.05, none on norms, 8 GPUs x 2
images, 36 epochs with steps at 27 and 33); the 4conv1fc box heads follow from the FLOPs. BatchNorm
is synchronised over GPUs, as in the authors' segmentation recipe; how they treated it in detection
is not known.

    bash tools/dist_train.sh configs/cascade_mask_rcnn_hire_s_coco.py 8 --amp
"""

_base_ = [
    "./_base_/cascade_mask_rcnn.py",
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
