"""UperNet, Hire-MLP-Base, ADE20K, 80k iterations.

Published: 48.3 mIoU single-scale, 49.6 multi-scale (quoted in arXiv 2202.06510, table 7), 1011
GFLOPs at 2048 x 512 (without the auxiliary head), 88 M parameters. Not rerun here.
"""

_base_ = "./upernet_hire_s_ade20k.py"

model = dict(
    # Not published for this recipe; 0.2 is the default of the authors' Base backbone.
    backbone=dict(arch="base", drop_path_rate=0.2, init_cfg=dict(checkpoint="hire-mlp://base"))
)
