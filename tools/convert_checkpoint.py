#!/usr/bin/env python
"""Convert a weight file of the reference code for OpenMMLab; the same as `hire-mlp convert`.

python tools/convert_checkpoint.py hire_mlp_small.pth backbone.pth
"""

from hire_mlp_mm.cli import tool

if __name__ == "__main__":
    tool("convert")
