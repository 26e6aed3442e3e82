"""The package's registry, a child of mmengine's, so that its scope can be named in a config.

mmengine imports `hire_mlp_mm.registry` by itself when a config says `type='hire_mlp_mm.HireMLP'`.
"""

from mmengine.registry import MODELS as ROOT
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_CONSTRUCTORS
from mmengine.registry import Registry

MODELS = Registry("model", parent=ROOT, scope="hire_mlp_mm", locations=["hire_mlp_mm.backbone"])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optimizer wrapper constructor",
    parent=ROOT_CONSTRUCTORS,
    scope="hire_mlp_mm",
    locations=["hire_mlp_mm.layer_decay"],
)
