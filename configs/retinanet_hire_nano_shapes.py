"""RetinaNet with a narrow head on a small HireMLP, from scratch: boxes alone, on a CPU.

A start for data of one's own: `hire-mlp data retinanet_hire_nano_shapes FOLDER`. Images are resized
to fit in 320 x 320.

    python tools/shapes.py FOLDER
    SHAPES_ROOT=FOLDER/ python tools/train.py configs/retinanet_hire_nano_shapes.py
"""

_base_ = ["./_base_/retinanet.py", "./_base_/shapes_detection.py"]

dims = (32, 64, 128, 192)
channels = 64
scale = (320, 320)

model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=(2, 2, 2, 2), dims=dims)),
    neck=dict(in_channels=list(dims[1:]), out_channels=channels),
    bbox_head=dict(num_classes=3, in_channels=channels, feat_channels=channels, stacked_convs=2),
)


def for_boxes(step):
    """A transform without masks, at the size of this recipe."""
    step = {key: value for key, value in step.items() if key != "with_mask"}
    return dict(step, scale=scale) if step["type"] == "Resize" else step


train_pipeline = [for_boxes(step) for step in _base_.train_pipeline]
test_pipeline = [for_boxes(step) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
