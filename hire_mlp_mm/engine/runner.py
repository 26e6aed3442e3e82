"""Offer mmengine's runners to configs: `runner_type='hire_mlp_mm.Runner'`.

The `tools/train.py` and `tools/test.py` of MMDetection, MMSegmentation and MMPretrain build the
runner that a config names, so this line alone gives a config of theirs what `harden` gives.
"""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import FlexibleRunner as HostFlexibleRunner
from mmengine.runner import Runner as HostRunner

from ..registry import RUNNERS
from .config import read_note
from .harden import harden

# How the records begin that fill screens before a training does; files get them.
LENGTHY = ("\n------", "Config:\n", "Hooks will be executed", "paramwise_options -- ")


def is_brief(record: logging.LogRecord) -> bool:
    """Tell whether a record of the log is for a terminal, too."""
    return not record.getMessage().startswith(LENGTHY)


class Hardening:
    """Harden the config of a runner that is derived from this class and one of mmengine's."""

    @classmethod
    def from_cfg(cls, cfg: Any) -> Any:
        """Build a runner of a config, which is left as it is."""
        host: Any = super()
        return host.from_cfg(harden(cfg))


@RUNNERS.register_module()
class Runner(Hardening, HostRunner):
    """Run a hardened config as mmengine's runner does; its terminal is spared long records."""

    def build_logger(self, *args: Any, **options: Any) -> MMLogger:
        """Build the logger, which tells the environment, the config and the hooks to files alone.

        Returns:
            mmengine's logger, with a filter for terminals.
        """
        logger: MMLogger = super().build_logger(*args, **options)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                logger.info(f"environment, config and hooks are in {handler.baseFilename} alone")
            else:
                handler.addFilter(is_brief)
        return logger

    def load_or_resume(self) -> None:
        """Load what the config names, or go on from the work dir's checkpoint, if it has one."""
        named = self.cfg.get("load_from")
        if not named and self.cfg.get("resume") and read_note(self.work_dir) is None:
            return  # which was said; mmengine would say 'Auto resumed from None'
        super().load_or_resume()


@RUNNERS.register_module()
class FlexibleRunner(Hardening, HostFlexibleRunner):
    """Run a hardened config as mmengine's runner for strategies does."""
