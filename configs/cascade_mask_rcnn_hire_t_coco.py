"""Cascade Mask R-CNN, Hire-MLP-Tiny, COCO, 3x. No figure is published; 75.5 M parameters."""

_base_ = "./cascade_mask_rcnn_hire_s_coco.py"

model = dict(backbone=dict(arch="tiny", init_cfg=dict(checkpoint="hire-mlp://tiny")))
