"""Put another backbone or your own data into a config of the three hosts: config in, config out.

from mmengine.config import Config
from hire_mlp_mm.configure import swap_backbone, use_data
cfg = swap_backbone(Config.fromfile("mine.py"), "small")
cfg = use_data(cfg, "folder/of/images")
"""

from .changes import Changes, Swap, SwapError
from .data import DataChange, make_data, use_data
from .swap import make_swap, swap_backbone

__all__ = [
    "Changes",
    "DataChange",
    "Swap",
    "SwapError",
    "make_data",
    "make_swap",
    "swap_backbone",
    "use_data",
]
