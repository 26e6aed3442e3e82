"""RetinaNet, Hire-MLP-Base, COCO, 1x.

Published: 44.3 box AP (quoted in arXiv 2202.06510, table 6), 316 GFLOPs at 1280 x 800,
68.0 M parameters. Not rerun here.
"""

_base_ = "./retinanet_hire_s_1x_coco.py"

model = dict(
    # Not published; 0.2 is the default of the authors' dense Base backbone.
    backbone=dict(arch="base", drop_path_rate=0.2, init_cfg=dict(checkpoint="hire-mlp://base"))
)
