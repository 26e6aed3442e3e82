#!/usr/bin/env python
"""Train a detector, segmentor or classifier; the same as `hire-mlp train`.

python tools/train.py configs/cascade_mask_rcnn_hire_s_coco.py
bash tools/dist_train.sh configs/cascade_mask_rcnn_hire_s_coco.py 8 --amp
"""

from hire_mlp_mm.cli import tool

if __name__ == "__main__":
    tool("train")
