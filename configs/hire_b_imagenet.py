"""Hire-MLP-Base, ImageNet-1K: the command of the authors' README, 8 GPUs x 128 images.

Published: 83.2 % top-1 (README of github.com/ggjy/Hire-Wave-MLP.pytorch), 8.1 GFLOPs at
224 x 224; 58.2 M parameters. Not rerun here.
"""

_base_ = "./hire_s_imagenet.py"

model = dict(backbone=dict(arch="base", drop_path_rate=0.2))
