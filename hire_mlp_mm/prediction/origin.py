"""Find a trained model: the checkpoint of a work dir, and the config beside a checkpoint."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..engine.config import check_file, newest_checkpoint
from ..errors import UserError

# At the beginning of a line in every config that a training has written beside its checkpoints.
# Other programs that lie there are not run.
IN_CONFIGS = re.compile(r"^default_scope\s*=", re.M)


def find_checkpoint(name: str) -> str:
    """Find the checkpoint of a work dir, its best or else its last one; a file or URL is itself.

    Raises:
        UserError: there is none.
    """
    if not os.path.isdir(name):
        check_file(name, "checkpoint or work dir")
        return name
    best = sorted(Path(name).glob("best_*.pth"), key=lambda path: path.stat().st_mtime)
    if best:
        return str(best[-1])
    newest = newest_checkpoint(name)
    if newest is None:
        raise UserError(f"{name} has no checkpoint, neither best_*.pth nor another .pth file")
    return newest


def find_config_of(checkpoint: str) -> str:
    """Find the config that a training has written beside its checkpoint.

    Raises:
        UserError: there is none, or more than one.
    """
    local = "://" not in checkpoint
    files = sorted(Path(checkpoint).parent.glob("*.py")) if local else []
    configs = [file for file in files if IN_CONFIGS.search(file.read_text(errors="replace"))]
    if len(configs) == 1:
        return str(configs[0])
    found = f"{len(configs)} configs are" if configs else "no config is"
    names = f" ({', '.join(file.name for file in configs)})" if configs else ""
    raise UserError(
        f"{found} beside {checkpoint}{names}; name the one of this model after the checkpoint: "
        f"a .py file, or the name of a recipe"
    )
