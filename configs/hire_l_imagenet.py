"""Hire-MLP-Large, ImageNet-1K.

Published: 83.8 % top-1 (README of github.com/ggjy/Hire-Wave-MLP.pytorch), 13.4 GFLOPs at
224 x 224; 95.7 M parameters. Not rerun here. The authors released no weights of Large.
"""

_base_ = "./hire_s_imagenet.py"

model = dict(
    # Not published; 0.3 is the default of the authors' dense Large backbone.
    backbone=dict(arch="large", drop_path_rate=0.3),
    head=dict(in_channels=768),
)
