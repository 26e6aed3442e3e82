"""Export whole models, as ONNX or by torch.export, check the files, and run them elsewhere.

from hire_mlp_mm.deploy import export
export(cfg, "upernet.onnx", checkpoint="iter_160000.pth")

`hire_mlp_mm.deploy.runtime` needs neither torch nor OpenMMLab; so the names here are imported when
they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporting import CheckError, Exported, export

__all__ = ["CheckError", "Exported", "export"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.exporting"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
