"""Hire-MLP backbone for MMDetection, MMSegmentation and MMPretrain.

Importing the package registers `HireMLP`.
"""

from .backbone import HireMLP

__version__ = "0.1.0"
__all__ = ["HireMLP", "__version__"]
