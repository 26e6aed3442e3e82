"""Cascade Mask R-CNN, Hire-MLP-Base, COCO, 3x.

Published: 51.7 box AP, 44.8 mask AP (quoted in arXiv 2202.06510, table 11), 813 GFLOPs at
1280 x 800; 115.7 M parameters. Not rerun here.
"""

_base_ = "./cascade_mask_rcnn_hire_s_coco.py"

model = dict(backbone=dict(arch="base", init_cfg=dict(checkpoint="hire-mlp://base")))
