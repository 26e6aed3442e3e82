"""Hire-MLP backbone for MMDetection, MMSegmentation and MMPretrain, and for torch alone.

Each name is imported when it is asked for, so that the network, its weights and its inference form
need torch and nothing else. Where mmengine is installed, importing the package registers `HireMLP`,
`LayerDecayOptimWrapperConstructor` and the names of the recipes (`hire_mlp_mm::NAME.py`, in the
hosts' inferencers and in MMPretrain's hub NAME alone) and of the weights (`hire-mlp://NAME`), lets
torch read mmengine's checkpoints, and offers torchvision's ops where mmcv has none.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import checkpoint, configure, deploy, engine, explain, fuse, lean, mmcv_ops, weights
    from .backbone import HireMLP
    from .checkpoint import from_pretrained, load_weights
    from .hire_mlp import HireMLPNet
    from .layer_decay import LayerDecayOptimWrapperConstructor
    from .prediction import Predictor, predict

__version__ = "0.1.0"
__all__ = [
    "HireMLP",
    "HireMLPNet",
    "LayerDecayOptimWrapperConstructor",
    "Predictor",
    "__version__",
    "checkpoint",
    "configure",
    "deploy",
    "engine",
    "explain",
    "from_pretrained",
    "fuse",
    "lean",
    "load_weights",
    "mmcv_ops",
    "predict",
    "weights",
]

# Where each name is; those of OpenMMLab need mmengine. `predict` needs it for checkpoints alone.
PLAIN = {
    "HireMLPNet": "hire_mlp",
    "from_pretrained": "checkpoint",
    "load_weights": "checkpoint",
    "predict": "prediction",
}
FLOORS = ("configure", "deploy", "engine")  # that stand on OpenMMLab
OPENMMLAB = {
    "HireMLP": "backbone",
    "LayerDecayOptimWrapperConstructor": "layer_decay",
    "Predictor": "prediction",
}

why_unregistered: ImportError | None = None  # what kept mmengine's part from being imported


def __getattr__(name: str) -> Any:
    if name in (*OPENMMLAB, *FLOORS) and why_unregistered:
        raise ImportError(without_openmmlab(name, why_unregistered)) from why_unregistered
    module = {**PLAIN, **OPENMMLAB}.get(name)
    if module:
        return getattr(import_module(f".{module}", __name__), name)
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)


def without_openmmlab(name: str, error: ImportError) -> str:
    """Say in a line what `name` needs, and what there is without it."""
    if error.name == "mmengine":
        return (
            f"hire_mlp_mm.{name} needs OpenMMLab, which is not installed: pip install "
            f"'hire_mlp_mm[lite]'; hire_mlp_mm.HireMLPNet needs torch alone"
        )
    return (
        f"hire_mlp_mm.{name} needs OpenMMLab, which is installed but cannot be imported "
        f"({type(error).__name__}: {error}); repair that (hire-mlp doctor may know how); "
        f"hire_mlp_mm.HireMLPNet needs torch alone"
    )


def register() -> None:
    """Make mmengine know what the package has."""
    from . import backbone, host_faults, layer_decay, loading, mmcv_ops, model_hub  # noqa: F401

    host_faults.mend()
    model_hub.install()
    mmcv_ops.install()


def register_if_possible() -> None:
    """Make mmengine know what the package has, where mmengine can be imported."""
    global why_unregistered
    try:
        register()
    except ImportError as error:
        # The network is of use without the rest; a fault of our own is one all the same.
        if (error.name or "").startswith(__name__):
            raise
        why_unregistered = error


# The command `hire-mlp` does it itself, once a verb needs it: its help takes no seconds then.
if Path(sys.argv[0] if sys.argv else "").stem not in ("hire-mlp", "-m"):
    register_if_possible()
