"""RetinaNet, Hire-MLP-Tiny, COCO, 1x. No figure is published; 27.8 M parameters."""

_base_ = "./retinanet_hire_s_1x_coco.py"

model = dict(
    # Not published; 0.1 is the default of the authors' dense Tiny backbone, too.
    backbone=dict(arch="tiny", init_cfg=dict(checkpoint="hire-mlp://tiny"))
)
