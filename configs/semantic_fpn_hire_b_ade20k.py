"""Semantic FPN, Hire-MLP-Base, ADE20K, 40k. No figure is published; 62.0 M parameters."""

_base_ = "./semantic_fpn_hire_s_ade20k.py"

model = dict(
    # Not published for this recipe; 0.2 is the default of the authors' Base backbone.
    backbone=dict(arch="base", drop_path_rate=0.2, init_cfg=dict(checkpoint="hire-mlp://base"))
)
