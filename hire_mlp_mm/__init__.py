"""Hire-MLP backbone for MMDetection, MMSegmentation and MMPretrain.

Importing the package registers `HireMLP` and `LayerDecayOptimWrapperConstructor`, and the names of
the recipes (`hire_mlp_mm::NAME.py`).
"""

from . import config_names
from .backbone import HireMLP
from .layer_decay import LayerDecayOptimWrapperConstructor

__version__ = "0.1.0"
__all__ = ["HireMLP", "LayerDecayOptimWrapperConstructor", "__version__", "config_names"]
