"""PoolFormer as MMPretrain builds it: a nano form, or PoolFormer-S24.

By its own default MMPretrain freezes the stem, which nobody has trained here: -1 leaves it free.
"""

arch = dict(
    nano=dict(layers=[2, 2, 2, 2], embed_dims=[32, 64, 128, 256]),
    paper=dict(layers=[4, 4, 12, 4], embed_dims=[64, 128, 320, 512]),
)["{{$STUDY_SIZE:nano}}"]
dims = tuple(arch["embed_dims"])
backbone = dict(type="mmpretrain.PoolFormer", arch=arch, frozen_stages=-1)
maps = (0, 2, 4, 6)  # of its stages, among which it counts the downsampling
