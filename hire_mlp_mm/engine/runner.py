"""Offer mmengine's runners to configs: `runner_type='hire_mlp_mm.Runner'`.

The `tools/train.py` and `tools/test.py` of MMDetection, MMSegmentation and MMPretrain build the
runner that a config names, so this line alone gives a config of theirs what `harden` gives.
"""

from __future__ import annotations

from typing import Any

from mmengine.runner import FlexibleRunner as HostFlexibleRunner
from mmengine.runner import Runner as HostRunner

from ..registry import RUNNERS
from .config import read_note
from .harden import harden


class Hardening:
    """Harden the config of a runner that is derived from this class and one of mmengine's."""

    @classmethod
    def from_cfg(cls, cfg: Any) -> Any:
        """Build a runner of a config, which is left as it is."""
        host: Any = super()
        return host.from_cfg(harden(cfg))


@RUNNERS.register_module()
class Runner(Hardening, HostRunner):
    """Run a hardened config as mmengine's runner does."""

    def load_or_resume(self) -> None:
        """Load what the config names, or go on from the work dir's checkpoint, if it has one."""
        named = self.cfg.get("load_from")
        if not named and self.cfg.get("resume") and read_note(self.work_dir) is None:
            return  # which was said; mmengine would say 'Auto resumed from None'
        super().load_or_resume()


@RUNNERS.register_module()
class FlexibleRunner(Hardening, HostFlexibleRunner):
    """Run a hardened config as mmengine's runner for strategies does."""
