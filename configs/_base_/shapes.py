"""Circles, squares and triangles, 128 x 128: what instance and semantic segmentation share.

The data root is $SHAPES_ROOT, or what `make demo` wrote; `tools/shapes.py FOLDER` writes the data
anywhere.
"""

data_root = "{{$SHAPES_ROOT:work_dirs/demo/data/}}"
shape_classes = ("circle", "square", "triangle")
shape_palette = [(214, 39, 40), (31, 119, 180), (44, 160, 44)]

# Images this small are read faster than a worker would hand them over.
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(data_root=data_root),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(data_root=data_root),
)
test_dataloader = val_dataloader

val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
randomness = dict(seed=0)
