#!/usr/bin/env python
"""Measure HireMLP side by side with other backbones; the same as `hire-mlp bench`.

python tools/benchmark.py --size 512x512 --against reference swin-t
"""

from hire_mlp_mm.cli import tool

if __name__ == "__main__":
    tool("bench")
