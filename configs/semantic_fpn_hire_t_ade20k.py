"""Semantic FPN, Hire-MLP-Tiny, ADE20K, 40k. No figure is published; 21.8 M parameters."""

_base_ = "./semantic_fpn_hire_s_ade20k.py"

model = dict(
    # Drop path as Small's: 0.1 is the default of the authors' Tiny backbone, too.
    backbone=dict(arch="tiny", init_cfg=dict(checkpoint="hire-mlp://tiny"))
)
