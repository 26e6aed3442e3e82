"""Train and test without losing anything, from Python.

`harden(cfg)` puts every guarantee into a config. `load_config`, `train` and `test` are what the
command `hire-mlp` calls. A config names hooks, loops, samplers and runners `hire_mlp_mm.NAME`.
"""

from .harden import harden
from .run import load_config, test, train

__all__ = ["harden", "load_config", "test", "train"]
