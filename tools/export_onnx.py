#!/usr/bin/env python
"""Export a model as ONNX or by torch.export, and check the file; the same as `hire-mlp export`.

python tools/export_onnx.py configs/upernet_hire_s_ade20k.py CHECKPOINT upernet.onnx
"""

from hire_mlp_mm.cli import tool

if __name__ == "__main__":
    tool("export")
