"""Mask R-CNN, Hire-MLP-Small, COCO, 1x schedule.

Published: 42.8 box AP, 39.3 mask AP (quoted in arXiv 2202.06510, table 6), 256 GFLOPs at
1280 x 800, 52.7 M parameters. Not rerun here.

The authors published no detection config. This is the recipe of the peers that these rows stand
beside; `_base_/schedule_1x.py` says which value comes from where. (Their text has learning rate
1e-4 for both detectors, PoolFormer's Mask R-CNN config 2e-4; the text is followed.)

    bash tools/dist_train.sh configs/mask_rcnn_hire_s_1x_coco.py 8
"""

_base_ = [
    "./_base_/mask_rcnn.py",
    "./_base_/coco_instance.py",
    "./_base_/schedule_1x.py",
    "./_base_/detection.py",
]

model = dict(
    backbone=dict(
        # Not published for detection; 0.1 is the default of the authors' dense Small backbone.
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="hire-mlp://small"),
    )
)
