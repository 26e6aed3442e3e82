"""mmengine's runners for whoever can name one in a config: `runner_type='hire_mlp_mm.Runner'`.

The `tools/train.py` and `tools/test.py` of MMDetection, MMSegmentation and MMPretrain build the
runner that a config names, so this line alone gives a config of theirs what `harden` gives.
"""

from __future__ import annotations

from typing import Any

from mmengine.runner import FlexibleRunner as HostFlexibleRunner
from mmengine.runner import Runner as HostRunner

from ..registry import RUNNERS
from .harden import harden


@RUNNERS.register_module()
class Runner(HostRunner):
    """mmengine's runner of a hardened config."""

    @classmethod
    def from_cfg(cls, cfg: Any) -> HostRunner:
        """Build a runner of a config, which is left as it is."""
        return super().from_cfg(harden(cfg))


@RUNNERS.register_module()
class FlexibleRunner(HostFlexibleRunner):
    """mmengine's runner for strategies, of a hardened config."""

    @classmethod
    def from_cfg(cls, cfg: Any) -> HostFlexibleRunner:
        """Build a runner of a config, which is left as it is."""
        return super().from_cfg(harden(cfg))
