"""Swin as MMPretrain builds it: a nano form, or Swin-T; without its drop path of 0.1.

Its windows of 7 tokens make it pad the maps of photographs: the nano form is narrower for those
(swin_cifar10.py widens it), so that its multiply-adds are those of the others.
"""

arch = dict(
    nano=dict(embed_dims=24, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8]),
    paper=dict(embed_dims=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]),
)["{{$STUDY_SIZE:nano}}"]
dims = tuple(arch["embed_dims"] * 2**i for i in range(4))
backbone = dict(type="mmpretrain.SwinTransformer", arch=arch, drop_path_rate=0.0)
maps = (0, 1, 2, 3)
