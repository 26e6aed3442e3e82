"""Let MMPretrain's `get_model` and `list_models` find our classifiers by their names.

MMPretrain's hub takes models of other packages by a public function. Whoever imports this package
does not want MMPretrain imported, so that the function is called when MMPretrain is, or at once if
it has been imported before.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from .host_faults import CONFIGS

HUB = "mmpretrain.apis.model"  # the module that has the hub
INDEX = CONFIGS / "metafile_imagenet.yml"


class HubFinder(MetaPathFinder):
    """Find the module of MMPretrain's hub, and register our models once it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == HUB else None
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register(module)

        loader.exec_module = execute_and_register
        return spec


def register(module: Any) -> None:
    """Register our classifiers with the hub of a module. Idempotent."""
    if not module.ModelHub.has("hire_s_imagenet"):
        module.ModelHub.register_model_index(INDEX, config_prefix=CONFIGS.parent)


def install() -> None:
    """Register our classifiers now, or when MMPretrain is imported. Idempotent."""
    if HUB in sys.modules:
        register(sys.modules[HUB])
    elif not any(isinstance(finder, HubFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, HubFinder())
