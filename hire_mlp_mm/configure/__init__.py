"""Put another backbone into a config of MMDetection, MMSegmentation or MMPretrain.

from mmengine.config import Config
from hire_mlp_mm.configure import swap_backbone
cfg = swap_backbone(Config.fromfile("mine.py"), "small")
"""

from .changes import Swap, SwapError
from .swap import make_swap, swap_backbone

__all__ = ["Swap", "SwapError", "make_swap", "swap_backbone"]
