"""Mask R-CNN, Hire-MLP-Tiny, COCO, 1x. No figure is published; 37.7 M parameters."""

_base_ = "./mask_rcnn_hire_s_1x_coco.py"

model = dict(
    # Not published; 0.1 is the default of the authors' dense Tiny backbone, too.
    backbone=dict(arch="tiny", init_cfg=dict(checkpoint="hire-mlp://tiny"))
)
