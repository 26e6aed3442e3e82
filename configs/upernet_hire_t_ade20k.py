"""UperNet, Hire-MLP-Tiny, ADE20K, 80k iterations. No figure is published; 48.0 M parameters."""

_base_ = "./upernet_hire_s_ade20k.py"

model = dict(
    # Not published for this recipe; 0.1 is the default of the authors' Tiny backbone.
    backbone=dict(arch="tiny", drop_path_rate=0.1, init_cfg=dict(checkpoint="hire-mlp://tiny"))
)
