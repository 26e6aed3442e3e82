"""Hire-MLP: a nano form, or Small."""

arch = dict(
    nano=dict(depths=(2, 2, 2, 2), dims=(32, 64, 96, 128)),
    paper=dict(depths=(3, 4, 10, 3), dims=(64, 128, 320, 512)),
)["{{$STUDY_SIZE:nano}}"]
dims = arch["dims"]
backbone = dict(type="HireMLP", arch=arch)
maps = (0, 1, 2, 3)
