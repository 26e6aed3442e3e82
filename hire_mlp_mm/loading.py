"""Let everything that loads checkpoints with mmengine read its training checkpoints and our names.

On import, torch's list of what a file may name grows by ours (`allowed.allow`), for torch 2.6 and
later refuse mmengine's checkpoints without it; and `hire-mlp://small` becomes a name that can stand
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
    """Read published weights as a checkpoint of a whole model, whose backbone they fill.

    The names are those of a model of the hosts: `backbone.` and ours, `head.fc.` for the head of
    MMPretrain's classifier.

    Args:
        filename: `hire-mlp://` and a name of `weights.WEIGHTS`.
        map_location: has no effect: the tensors are on the CPU, and copied into a model.

    Raises:
        CheckpointError: no weights of that name were published, or their file cannot be read.
    """
    heads = {"head.weight": "head.fc.weight", "head.bias": "head.fc.bias"}
    state = {heads.get(k, f"backbone.{k}"): v for k, v in read_backbone(filename).items()}
    return dict(meta=dict(source=weights.resolve(filename).url), state_dict=state)
