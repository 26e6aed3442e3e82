"""Predict on images, folders and videos of one's own: pictures, and results for machines.

`predict(checkpoint, inputs, out)` does what the command `hire-mlp predict` does. A `Predictor`
gives the predictions to a program one by one, and writes nothing.

The hosts build the models, prepare the images and draw the pictures: by their registries, the
config's test pipeline, `model.test_step` and their visualizers. Their inferencers are passed by,
because one broken image ends their run, images of one name overwrite each other, a checkpoint that
does not fit is but a warning, and they read no videos and don't write COCO's format.
"""

from .predictor import Prediction, Predictor
from .run import Outcome, predict

__all__ = ["Outcome", "Prediction", "Predictor", "predict"]
