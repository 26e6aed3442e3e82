"""Make the package's registries, children of mmengine's, so that configs can name its scope.

mmengine imports this file by itself when a config says `type='hire_mlp_mm.HireMLP'`, and the files
that `locations` names when one of the registries is asked for the first time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine import registry as root
from mmengine.registry import Registry

SCOPE = "hire_mlp_mm"


class GuardRegistry(Registry):
    """Hold every class of the host, guarded.

    `hire_mlp_mm.CocoDataset` is the class that the current scope knows as `CocoDataset`, made to
    say which of its files is wrong.
    """

    guard: Callable[[Any], Any]  # set by the file at `locations`

    def get(self, key: str) -> Any:
        """Return a host's class by its name, guarded; see `mmengine.registry.Registry.get`."""
        self.import_from_location()
        with self.parent.switch_scope_and_registry(None) as current:
            host = current.get(key.removeprefix(f"{SCOPE}."))
            return None if host is None else self.guard(host)


def child(name: str, parent: Registry, *locations: str, kind: type[Registry] = Registry) -> Any:
    """Make a registry of this package's scope; `locations` are files of the package."""
    modules = [f"{SCOPE}.{location}" for location in locations]
    return kind(name, parent=parent, scope=SCOPE, locations=modules)


MODELS = child("model", root.MODELS, "backbone")
OPTIM_WRAPPER_CONSTRUCTORS = child(
    "optimizer wrapper constructor", root.OPTIM_WRAPPER_CONSTRUCTORS, "layer_decay"
)
RUNNERS = child("runner", root.RUNNERS, "engine.runner")
LOOPS = child("loop", root.LOOPS, "engine.loops")
HOOKS = child("hook", root.HOOKS, "engine.hooks")
DATA_SAMPLERS = child("data sampler", root.DATA_SAMPLERS, "engine.randomness")
FUNCTIONS = child("function", root.FUNCTIONS, "engine.randomness")
DATASETS = child("dataset", root.DATASETS, "engine.guarded", kind=GuardRegistry)
METRICS = child("metric", root.METRICS, "engine.guarded", kind=GuardRegistry)
