"""Export whole models, as ONNX or by torch.export, and check the files.

from hire_mlp_mm.deploy import export
export(cfg, "upernet.onnx", checkpoint="iter_160000.pth")
"""

from .export import CheckError, Exported, export

__all__ = ["CheckError", "Exported", "export"]
