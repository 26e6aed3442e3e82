"""PoolFormer as MMPretrain builds it: a nano form, or PoolFormer-S24.

By its own default MMPretrain freezes the stem, which nobody has trained here: -1 leaves it free.
And it multiplies what a block adds by a layer scale of 1e-5, which is for hundreds of epochs: after
500 steps the scales are still near 0.02, and the blocks do next to nothing. 1 is no scale, as in
the other backbones.
"""

arch = dict(
    nano=dict(layers=[2, 2, 2, 2], embed_dims=[32, 64, 128, 256], layer_scale_init_value=1.0),
    paper=dict(layers=[4, 4, 12, 4], embed_dims=[64, 128, 320, 512], layer_scale_init_value=1.0),
)["{{$STUDY_SIZE:nano}}"]
dims = tuple(arch["embed_dims"])
backbone = dict(
    type="mmpretrain.PoolFormer",
    arch=arch,
    frozen_stages=-1,
    init_cfg=[  # of MMPretrain's own config
        dict(type="TruncNormal", layer=["Conv2d", "Linear"], std=0.02),
        dict(type="Constant", layer=["GroupNorm"], val=1.0),
    ],
)
maps = (0, 2, 4, 6)  # of its stages, among which it counts the downsampling
