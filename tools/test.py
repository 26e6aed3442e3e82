#!/usr/bin/env python
"""Evaluate a checkpoint; the same as `hire-mlp test`.

python tools/test.py configs/cascade_mask_rcnn_hire_s_coco.py CHECKPOINT
python tools/test.py configs/upernet_hire_s_ade20k.py CHECKPOINT --tta     # multi-scale mIoU
"""

from hire_mlp_mm.cli import tool

if __name__ == "__main__":
    tool("test")
