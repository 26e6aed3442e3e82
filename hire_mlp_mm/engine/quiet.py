"""Keep what hosts say while their parts are only tried."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from mmengine.logging import MMLogger


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let hosts print, warn and log nothing but errors."""
    logger = MMLogger.get_current_instance()  # made now, it keeps the terminal as its stream
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
