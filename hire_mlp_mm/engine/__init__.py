"""Train and test without a loss, as a library.

`harden(cfg)` puts every guarantee into a config; `run.train` and `run.test` are the rest of the
command `hire-mlp`. What a config can name (hooks, loops, samplers, runners) is `hire_mlp_mm.NAME`.
"""

from .harden import harden
from .run import load, test, train

__all__ = ["harden", "load", "test", "train"]
