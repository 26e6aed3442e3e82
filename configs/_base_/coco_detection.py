"""COCO boxes: the instances without their masks."""

_base_ = "./coco_instance.py"


def without_masks(step):
    """A transform that loads no masks."""
    return {key: value for key, value in step.items() if key != "with_mask"}


train_pipeline = [without_masks(step) for step in _base_.train_pipeline]
test_pipeline = [without_masks(step) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
