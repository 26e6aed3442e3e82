"""Predict on images, folders and videos of one's own: pictures, and results for machines.

`predict(checkpoint, inputs, out)` does what the command `hire-mlp predict` does. A `Predictor`
gives the predictions to a program one by one, and writes nothing.

The hosts build the models, prepare the images and draw the pictures: by their registries, the
config's test pipeline, `model.test_step` and their visualizers. Their inferencers are passed by,
because one broken image ends their run, images of one name overwrite each other, a checkpoint that
does not fit is but a warning, and they read no videos and don't write COCO's format.

An exported file takes the place of the checkpoint in `predict`, and an `ExportedPredictor` that of
the `Predictor`. Each name is imported when it is asked for: these two need nothing of the hosts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Prediction
    from .exported import ExportedPredictor
    from .predictor import Predictor
    from .run import Outcome, predict

__all__ = ["ExportedPredictor", "Outcome", "Prediction", "Predictor", "predict"]

PLACES = {
    "ExportedPredictor": "exported",
    "Outcome": "run",
    "Prediction": "base",
    "Predictor": "predictor",
    "predict": "run",
}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{PLACES[name]}", __name__), name)
