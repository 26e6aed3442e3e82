#!/usr/bin/env python
"""Put HireMLP into an existing config; the same as `hire-mlp swap`.

python tools/swap_backbone.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --arch small
"""

from hire_mlp_mm.cli import tool

if __name__ == "__main__":
    tool("swap")
