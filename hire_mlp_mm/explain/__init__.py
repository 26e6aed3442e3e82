"""Show what a network sees: heat maps of its decisions, and the receptive fields of its stages.

`explain(checkpoint, images, out)` does what the command `hire-mlp explain` does; an `Explainer`
gives the heat maps to a program one by one, and writes nothing. They are LayerCAM's, by torchcam.
(grad-cam, which is better known, comes as source only, with eight packages; torchcam comes alone.)

`receptive_fields(backbone, images)` measures, with torch alone, which pixels move the central token
of each map of a backbone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fields import receptive_fields
    from .heat import Explainer, Heat
    from .run import Comparison, compare_fields, explain

__all__ = ["Comparison", "Explainer", "Heat", "compare_fields", "explain", "receptive_fields"]

PLACES = {
    "Comparison": "run",
    "Explainer": "heat",
    "Heat": "heat",
    "compare_fields": "run",
    "explain": "run",
    "receptive_fields": "fields",
}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{PLACES[name]}", __name__), name)
