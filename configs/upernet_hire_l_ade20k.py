"""UperNet, Hire-MLP-Large, ADE20K, 80k iterations.

Published: 48.8 mIoU single-scale, 49.9 multi-scale (quoted in arXiv 2202.06510, table 7), 1125
GFLOPs at 2048 x 512 (without the auxiliary head), 127 M parameters. Not rerun here.

The authors released no ImageNet weights of Large, so this stops until it is told which to take:
--cfg-options model.backbone.init_cfg.checkpoint=FILE, or model.backbone.init_cfg=None for none.
"""

_base_ = "./upernet_hire_s_ade20k.py"

model = dict(
    # Not published for this recipe; 0.3 is the default of the authors' Large backbone.
    backbone=dict(arch="large", drop_path_rate=0.3, init_cfg=dict(checkpoint="hire-mlp://large")),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
