"""Mask R-CNN, Hire-MLP-Tiny, COCO, 3x. No figure is published; 37.7 M parameters."""

_base_ = "./mask_rcnn_hire_s_3x_coco.py"

model = dict(backbone=dict(arch="tiny", init_cfg=dict(checkpoint="hire-mlp://tiny")))
