"""RetinaNet, Hire-MLP-Small, COCO, 1x schedule.

Published: 41.7 box AP (quoted in arXiv 2202.06510, table 6), 237 GFLOPs at 1280 x 800,
42.8 M parameters. Not rerun here.

The authors published no detection config. This is the recipe of the peers that these rows stand
beside; `_base_/schedule_1x.py` says which value comes from where.

    bash tools/dist_train.sh configs/retinanet_hire_s_1x_coco.py 8
"""

_base_ = [
    "./_base_/retinanet.py",
    "./_base_/coco_detection.py",
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
