"""What the tools load with mmengine is read as data, whole, and into the model it is of."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner, find_latest_checkpoint
from mmengine.runner import checkpoint as runner_checkpoint
from torch import Tensor, nn

from hire_mlp_mm.checkpoint import (
    CheckpointError,
    StateDict,
    check_digest,
    digest_in,
    fetch,
    first_line,
    fit,
    groups,
    match_state_dict,
    oddity,
    plain,
    short,
)
from hire_mlp_mm.hire_mlp import HireMLPNet
from hire_mlp_mm.torch_file import load_data

# The log in a checkpoint ------------------------------------------------------------------------
# mmengine's runner saves its log (HistoryBuffer, numpy) beside the weights, which `torch.load` of
# torch 2.6 and later refuses. What the log needs is built by the functions below; numpy's own are
# not let in, for they can be told to build arrays of pointers.

NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
METHODS = ("current", "max", "mean", "min")


class Number:
    """`numpy.dtype` in a file: numbers only."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in NUMBERS:
            raise CheckpointError(f"a checkpoint's log holds {code!r}; expected numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        """Byte order and the like; numbers have the machine's."""


class Numbers(np.ndarray):
    """`numpy.ndarray` in a file: filled by its state, copied and saved as a plain array."""

    def __new__(cls) -> Numbers:
        return super().__new__(cls, (0,))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, number, fortran, data = state
        values = np.frombuffer(data, number.dtype).reshape(shape, order="F" if fortran else "C")
        super().__setstate__((1, values.shape, values.dtype, False, values.tobytes()))

    def __reduce__(self) -> Any:
        return np.array(self).__reduce__()


def empty_numbers(*_: object) -> Numbers:
    """`_reconstruct` in a file: an array to be filled."""
    return Numbers()


def one_number(number: Number, data: bytes) -> np.generic:
    """`scalar` in a file."""
    return np.frombuffer(data, number.dtype)[0]


def history_buffer_method(owner: type, name: str) -> object:
    """`getattr` in a file: the log's methods."""
    if owner is not HistoryBuffer or name not in METHODS:
        raise CheckpointError(f"a checkpoint asks for {name} of {owner}; refused")
    return getattr(owner, name)


ALLOWED: list[Any] = [
    HistoryBuffer,
    (dict, "mmengine.config.config.ConfigDict"),  # in metainfo of a data set, from its config
    (Number, "numpy.dtype"),
    (Numbers, "numpy.ndarray"),
    (history_buffer_method, "builtins.getattr"),
    *((empty_numbers, f"numpy.{c}.multiarray._reconstruct") for c in ("core", "_core")),
    *((one_number, f"numpy.{c}.multiarray.scalar") for c in ("core", "_core")),
]


NO_TRAINING = (
    "holds no state of a training to resume; for its weights alone, leave out --resume and give it "
    "by --cfg-options load_from=FILE"
)

# Reading ----------------------------------------------------------------------------------------


def guard_loading() -> None:
    """From here on, this process reads checkpoints as data, whoever asks for one.

    mmengine calls `torch.load` and leaves it to torch's version and to the environment what that
    does, calls torch hub, which reads without any check, and runs the config in a checkpoint that
    training goes on from. onedl-mmengine opens what its own check refuses without one.
    """
    # Holds for every `torch.load` of this process and of those that it starts.
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals(ALLOWED)
    runner_checkpoint._safe_torch_load = torch.load
    CheckpointLoader.load_checkpoint = staticmethod(load_checkpoint)


def load_checkpoint(filename: str, map_location: Any = None, logger: Any = None) -> dict[str, Any]:
    """`CheckpointLoader.load_checkpoint`, of data.

    Raises:
        FileNotFoundError: no file there.
        CheckpointError: it cannot be read; the message names it.
    """
    loader = CheckpointLoader._get_checkpoint_loader(filename)
    if loader in (runner_checkpoint.load_from_local, runner_checkpoint.load_from_http):
        path = fetch(filename)
        check_digest(path, digest_in(filename))
        return as_plain(load_data(path, ALLOWED, map_location), filename)
    try:  # a model zoo's name, or a store's
        return as_plain(loader(filename, map_location), filename)
    except FileNotFoundError:
        raise
    except Exception as error:  # its client can raise anything
        raise CheckpointError(f"{filename} cannot be read: {first_line(error)}") from error


def as_plain(data: object, name: str) -> dict[str, Any]:
    """A checkpoint without what could be run, and without objects whose methods a file has set.

    Raises:
        CheckpointError: it is none.
    """
    if not isinstance(data, dict):
        raise CheckpointError(f"{name} holds a {type(data).__name__}; expected a checkpoint")
    checkpoint = dict(dict.items(data))
    if isinstance(checkpoint.get("meta"), dict):
        # A config is a program. mmengine would run it to learn how many GPUs it names.
        meta = dict.items(checkpoint["meta"])
        checkpoint["meta"] = {k: v for k, v in meta if k not in ("config", "cfg")}
    state = checkpoint.get("state_dict")
    if not isinstance(state, dict):
        return checkpoint
    tensors: OrderedDict[str, Any] = OrderedDict()
    for key, value in dict.items(state):
        if not isinstance(key, str):
            raise CheckpointError(f"{name} has {short(key)} among the names of its state_dict")
        tensors[key.removeprefix("module.")] = value
    versions = vars(state).get("_metadata") if isinstance(state, OrderedDict) else None
    if isinstance(versions, dict):
        tensors._metadata = versions
    checkpoint["state_dict"] = tensors
    return checkpoint


# Checks -----------------------------------------------------------------------------------------


class CheckpointCheck(Hook):
    """Compares a checkpoint with the model before it is loaded; mmengine loads whatever fits.

    Args:
        whole: every tensor of the model has to be there, as it has to be where training goes on;
            else those of its HireMLP backbones.
        model: what to compare with, if the runner's is divided among processes.
    """

    priority = "VERY_LOW"  # after an average's weights have changed places with the model's

    def __init__(self, whole: bool, model: nn.Module | None = None) -> None:
        self.whole, self.model = whole, model

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        path = runner._load_from or find_latest_checkpoint(runner.work_dir)
        if os.path.isdir(path):  # saved in parts, by and for a strategy
            return
        name = f"checkpoint {path}"
        state = checkpoint.get("state_dict", checkpoint)
        tensors = {key: plain(v) for key, v in state.items() if isinstance(v, Tensor)}
        model = runner.model if self.model is None else self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        if runner._resume:
            check_training(checkpoint, name)
        if self.whole or runner._resume:
            check_whole(tensors, model, name)
        else:
            check_backbones(tensors, model, name)
        # Else mmengine would say each of their names, however many there are.
        parts = {key.partition(".")[0] for key in model.state_dict()}
        extra = [key for key in tensors if key.partition(".")[0] not in parts]
        if extra:
            runner.logger.info(f"{name}: left out {groups(extra, 3)}, without a place in the model")
            for key in extra:
                del state[key]


def check_training(checkpoint: dict[str, Any], name: str) -> None:
    """Raise CheckpointError unless training can go on from a checkpoint."""
    kinds = dict(epoch=int, iter=int, log_scalars=dict, runtime_info=dict, resumed_keys=dict)
    parts = [checkpoint.get(key) for key in ("meta", "message_hub")]
    state = {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}
    if not all(isinstance(state.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"{name} {NO_TRAINING}")


def check_whole(state: StateDict, model: nn.Module, name: str) -> None:
    """Raise CheckpointError unless a state dict has every tensor of a model.

    It may have more, but not of a HireMLP backbone: that would be one of another arch.
    """
    for _, network, given in backbones_in(state, model):
        if given and given.keys() != network.state_dict().keys():
            match_state_dict(given, network.state_dict(), name)
    expected = model.state_dict()
    wrong = [k for k, v in expected.items() if k not in state or state[k].shape != v.shape]
    if wrong:
        held = groups(list(state), 1) if state else "no tensors under state_dict"
        raise CheckpointError(
            f"{name} is not of this config's model: {len(wrong)} of {len(expected)} tensors are "
            f"missing or of another shape, such as {wrong[0]}; it holds {held}"
        )
    check_numbers(state, expected, name)


def backbones_in(
    state: StateDict, model: nn.Module
) -> Iterator[tuple[str, HireMLPNet, dict[str, Tensor]]]:
    """(path, network, what a state dict has of it) of each HireMLP backbone in a model."""
    for path, module in model.named_modules():
        if isinstance(module, HireMLPNet):
            start = f"{path}."
            given = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            yield path, module, given


def check_backbones(state: StateDict, model: nn.Module, name: str) -> None:
    """Raise CheckpointError unless a state dict fits the HireMLP backbones of a model.

    Heads and necks may be others. Of a model without such a backbone, something has to fit.
    """
    expected = model.state_dict()
    fitting = {k: v for k, v in expected.items() if k in state and state[k].shape == v.shape}
    check_numbers(state, fitting, name)
    for path, network, given in backbones_in(state, model):
        if not given:
            raise CheckpointError(
                f"{name} holds nothing of the model's {path}; weights of a backbone alone "
                f"are given by --cfg-options model.{path}.init_cfg.type=Pretrained "
                f"model.{path}.init_cfg.checkpoint=FILE"
            )
        match_state_dict(given, network.state_dict(), name)
    if not fitting:
        raise CheckpointError(f"{name} holds nothing that fits this config's model")


def check_numbers(state: StateDict, expected: StateDict, name: str) -> None:
    """Raise CheckpointError unless tensors of a state dict are numbers, and finite.

    What is as the model has it already is fine in any case: masks are of bool or infinite.
    """
    for key, tensor in expected.items():
        value = state[key]
        if odd := oddity(value):
            raise CheckpointError(f"{name}: {key} is {odd}; expected a plain tensor")
        try:
            fit(value, tensor)
        except ValueError as error:
            if value.dtype != tensor.dtype or not torch.equal(value.cpu(), tensor.cpu()):
                raise CheckpointError(f"{name}: {key} {error}") from error
