"""Let everything that loads checkpoints with mmengine read its training checkpoints and our names.

On import, torch's list of what a file may name grows by ours (`allowed.allow`), without which torch
2.6 and later refuse mmengine's checkpoints. And `hire-mlp://small` becomes a name that can stand
for a checkpoint: in `load_from`, in `init_detector`, on a test's command line.
"""

from __future__ import annotations

from typing import Any

from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from . import allowed, weights
from .checkpoint import read_backbone

allowed.TABLE[allowed.HISTORY] = HistoryBuffer
allowed.allow()


# mmengine's log cuts `load_from_` off the name of this function and prints the rest.
@CheckpointLoader.register_scheme(prefixes=weights.SCHEME, force=True)
def load_from_hire_mlp(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read the published weights `hire-mlp://NAME` as the checkpoint of a whole model.

    Its names are those of a model of the hosts: `backbone.` and ours, `head.fc.` for the head of
    MMPretrain's classifier. The tensors are on the CPU, whatever `map_location` says.
    """
    heads = {"head.weight": "head.fc.weight", "head.bias": "head.fc.bias"}
    state = {heads.get(k, f"backbone.{k}"): v for k, v in read_backbone(filename).items()}
    return dict(meta=dict(source=weights.resolve(filename).url), state_dict=state)
