"""Hire-MLP backbone for MMDetection, MMSegmentation and MMPretrain.

Importing the package registers `HireMLP` and `LayerDecayOptimWrapperConstructor`.
"""

from .backbone import HireMLP
from .layer_decay import LayerDecayOptimWrapperConstructor

__version__ = "0.1.0"
__all__ = ["HireMLP", "LayerDecayOptimWrapperConstructor", "__version__"]
