"""Our recipes by name: `_base_ = 'hire_mlp_mm::upernet_hire_s_ade20k.py'`.

mmengine looks up names in OpenMMLab's own packages only, wants a folder in them, and gives what it
finds the package's scope, in which there is no detector. So names that start with `hire_mlp_mm::`
are looked up here, from the package's import on. All others are left to mmengine.
"""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from mmengine.hub import hub

PACKAGE = "hire_mlp_mm"
CONFIGS = Path(__file__).parent / ".mim" / "configs"

path_by_mmengine = Config._get_cfg_path
name_by_mmengine = hub._get_package_and_cfg_path


def base_path(base: str, filename: str) -> tuple[str, str | None]:
    """Path and scope of a base that the config `filename` names."""
    package, _, name = base.partition("::")
    if package == PACKAGE and name:
        return str(CONFIGS / name), None
    return path_by_mmengine(base, filename)


def package_and_name(config: str) -> tuple[str, str]:
    """What to look in and what for, for `mmengine.hub.get_config`.

    The first is a module and not the package: mmengine then asks Python where it lies, which finds
    editable installs, too.
    """
    package, _, name = config.partition("::")
    return (__name__, name) if package == PACKAGE else name_by_mmengine(config)


Config._get_cfg_path = staticmethod(base_path)
hub._get_package_and_cfg_path = package_and_name
