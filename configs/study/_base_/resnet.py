"""ResNet as MMPretrain builds it: ResNet-18 with fewer channels, or ResNet-50."""

depth, stem, stage_1, expansion = dict(nano=(18, 16, 24, 1), paper=(50, 64, 64, 4))[
    "{{$STUDY_SIZE:nano}}"
]
dims = tuple(stage_1 * expansion * 2**i for i in range(4))
backbone = dict(type="mmpretrain.ResNet", depth=depth, stem_channels=stem, base_channels=stage_1)
maps = (0, 1, 2, 3)
