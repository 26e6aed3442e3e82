"""Save checkpoints whole, remove them late, read them as data, compare them with the model."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as HostCheckpointHook
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, find_latest_checkpoint
from torch import Tensor, nn

from ..checkpoint import (
    CheckpointError,
    StateDict,
    check_digest,
    digest_in,
    fetch,
    fit,
    groups,
    match_state_dict,
    oddity,
    plain,
)
from ..errors import UserError, short
from ..files import WHOLE
from ..hire_mlp import HireMLPNet
from ..registry import HOOKS
from ..torch_file import load_data
from .batches import unwrapped
from .resume import NO_TRAINING, check_undamaged

OUTDATED = "outdated_ckpts"  # in the log that checkpoints hold: files that are to be removed

# Saving -----------------------------------------------------------------------------------------


@HOOKS.register_module()
class CheckpointHook(HostCheckpointHook):
    """Save checkpoints as mmengine's hook does, each whole, and remove old ones after that.

    mmengine removes the old one first, and a run that is killed between has neither. The options
    are mmengine's.
    """

    def __init__(self, *args: Any, backend_args: dict[str, Any] | None = None, **options: Any):
        local = "://" not in str(options.get("out_dir"))
        if local and backend_args is None and options.get("file_client_args") is None:
            backend_args = dict(backend=WHOLE)
        super().__init__(*args, backend_args=backend_args, **options)
        self.checked = False  # whether what is saved can be loaded again

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        self.file_backend: Any = LateBackend(self.file_backend, runner.message_hub)
        self.finish(runner)  # what a crash kept from being removed

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        super().after_train_iter(runner, *args, **kwargs)
        self.finish(runner)

    def after_train_epoch(self, runner: Any) -> None:
        super().after_train_epoch(runner)
        self.finish(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any]) -> None:
        super().after_val_epoch(runner, metrics)
        self.finish(runner)

    def finish(self, runner: Any) -> None:
        """Remove what is outdated, of this work dir alone, now that the newer one is whole.

        The paths are those of the training that saved the checkpoint which this one went on from;
        where that had another work dir, its files stay.

        Raises:
            UserError: what was saved cannot be loaded again.
        """
        self.check_readable()
        outdated = runner.message_hub.runtime_info.get(OUTDATED, [])
        if not outdated:
            return
        best = {getattr(self, "best_ckpt_path", None), self.last_ckpt}
        best.update(getattr(self, "best_ckpt_path_dict", {}).values())
        for path in outdated:
            own = self.file_backend.join_path(self.out_dir, os.path.basename(path))
            if path == own and path not in best and is_main_process():
                self.file_backend.remove_now(path)
        runner.message_hub.update_info(OUTDATED, [])

    def check_readable(self) -> None:
        """Stop at the first checkpoint, not after the crash, if it holds what is not read again.

        Raises:
            UserError: it does, from a hook of the config or its data set's metainfo.
        """
        if self.checked or self.last_ckpt is None or not is_main_process():
            return
        if os.path.isfile(self.last_ckpt):
            try:
                check_undamaged(self.last_ckpt)
            except UserError as error:
                raise UserError(f"what this training saves cannot be loaded: {error}") from error
        self.checked = True


class LateBackend:
    """Note what a file backend is to remove, where checkpoints keep it.

    Args:
        backend: the real one.
        hub: mmengine's log, which is part of every checkpoint.
    """

    def __init__(self, backend: Any, hub: Any) -> None:
        self.backend, self.hub = backend, hub

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        """Note a path for `CheckpointHook.finish`."""
        self.hub.update_info(OUTDATED, [*self.hub.runtime_info.get(OUTDATED, []), path])

    rmtree = remove  # DeepSpeed's checkpoints are folders

    def remove_now(self, path: str) -> None:
        """Remove a file or folder, if it is there."""
        if self.backend.isfile(path):
            self.backend.remove(path)
        elif self.backend.isdir(path):
            self.backend.rmtree(path)


# Reading ----------------------------------------------------------------------------------------


def read_as_data() -> None:
    """Have this process read checkpoints as data from now on, whoever asks mmengine for one.

    mmengine leaves it to torch's version and to the environment what `torch.load` does, and calls
    torch hub, which reads without any check; onedl-mmengine opens what its own check refuses.
    """
    # Holds for every `torch.load` of this process and of those that it starts.
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    CheckpointLoader.register_scheme(["", "http://", "https://"], load_from_file, force=True)


# mmengine's log cuts `load_from_` off the name of this function and prints the rest.
def load_from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a local file or a URL as mmengine does, but as data.

    Raises:
        FileNotFoundError: no file there.
        CheckpointError: it cannot be read; the message names it.
    """
    path = fetch(filename)
    check_digest(path, digest_in(filename))
    return as_plain(load_data(path, device=map_location), filename)


def as_plain(data: object, name: str) -> dict[str, Any]:
    """Return a checkpoint without what could be run, and without objects of the file's making.

    Raises:
        CheckpointError: it is none.
    """
    if not isinstance(data, dict):
        raise CheckpointError(f"{name} holds a {type(data).__name__}; expected a checkpoint")
    checkpoint = dict(dict.items(data))
    if isinstance(checkpoint.get("meta"), dict):
        # A config is a program. mmengine would run it to learn how many GPUs it names.
        meta = dict.items(checkpoint["meta"])
        checkpoint["meta"] = {k: v for k, v in meta if k != "config"}
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
        tensors.__dict__["_metadata"] = versions
    checkpoint["state_dict"] = tensors
    return checkpoint


# Checks -----------------------------------------------------------------------------------------


@HOOKS.register_module()
class LoadHook(Hook):
    """Read checkpoints as data, and compare each with the model before mmengine loads what fits.

    For a test, and where training goes on, every tensor of the model has to be in it; for a
    training's `load_from` those of its HireMLP backbones, which mmengine would leave as they are.
    """

    priority = "VERY_LOW"  # after an average's weights have changed places with the model's

    def __init__(self) -> None:
        read_as_data()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        resumed = bool(runner.cfg.get("resume"))
        path = runner.cfg.get("load_from") or find_latest_checkpoint(runner.work_dir)
        if os.path.isdir(str(path)):  # saved in parts, by and for a strategy
            return
        name = f"checkpoint {path}"
        state = checkpoint.get("state_dict", checkpoint)
        model = whole_model(runner)
        training = isinstance(runner.optim_wrapper, (BaseOptimWrapper, OptimWrapperDict))
        if resumed and training:
            check_training(checkpoint, name)
            checkpoint["meta"].pop("config", None)  # of a loader that is not ours
        if resumed or not training:
            left = check_whole(tensors_of(state), model, name)
        else:
            left = check_backbones(tensors_of(state), model, name)
        # Else mmengine would say each of their names, however many there are.
        parts = {key.partition(".")[0] for key in model.state_dict()}
        extra = [key for key in left if key.partition(".")[0] not in parts]
        if extra:
            runner.logger.info(f"{name}: left out {groups(extra, 3)}, without a place in the model")
            for key in extra:
                del state[key]


def whole_model(runner: Any) -> nn.Module:
    """Return a runner's model, unwrapped; without its numbers, if a strategy has divided them."""
    if "strategy" in runner.cfg:
        return MODELS.build(copy.deepcopy(runner.cfg.model)).to("meta")
    model: Any = unwrapped(runner.model)
    while isinstance(model, BaseTTAModel):
        model = model.module
    return model


def tensors_of(state: Mapping[str, Any]) -> StateDict:
    """Return the tensors of a state dict, with what modules say of their versions there."""
    tensors = OrderedDict((key, plain(v)) for key, v in state.items() if isinstance(v, Tensor))
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        tensors.__dict__["_metadata"] = versions
    return tensors


@dataclass
class Fit:
    """Say how a state dict fits a model.

    Args:
        absent: tensors of the model that it lacks, or has in another shape.
        unexpected: what it has and the model does not.
    """

    absent: list[str]
    unexpected: list[str]


def try_to_load(state: Mapping[str, Any], model: nn.Module) -> Fit:
    """Load a state dict into a model, as is to be done anyway, and tell how it fits.

    Models of the hosts rename and resize what they load on the way, which no comparison of names
    and shapes would see.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a model without its numbers
        try:
            found = model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            wrong = re.findall(r"size mismatch for ([^:\s]+):", str(error))
            if not wrong:
                raise
            rest = OrderedDict((key, value) for key, value in state.items() if key not in wrong)
            if len(rest) == len(state):  # the model has renamed it
                return Fit(wrong, [])
            less = try_to_load(rest, model)
            return Fit([*wrong, *(key for key in less.absent if key not in wrong)], less.unexpected)
    return Fit(list(found.missing_keys), list(found.unexpected_keys))


def check_training(checkpoint: dict[str, Any], name: str) -> None:
    """Raise CheckpointError unless training can go on from a checkpoint."""
    kinds = dict(epoch=int, iter=int, log_scalars=dict, runtime_info=dict, resumed_keys=dict)
    parts = [checkpoint.get(key) for key in ("meta", "message_hub")]
    state = {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}
    if not all(isinstance(state.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"{name} {NO_TRAINING}")


def check_whole(state: StateDict, model: nn.Module, name: str) -> list[str]:
    """Load a state dict that has every tensor of a model.

    It may have more, but not of a HireMLP backbone: that would be one of another arch.

    Returns:
        What has no place in the model.

    Raises:
        CheckpointError: it lacks something, or holds something that is not a number.
    """
    for _, network, given in backbones_in(state, model):
        if given and given.keys() != network.state_dict().keys():
            match_state_dict(given, network.state_dict(), name)
    check_numbers(state, model, name)
    found = try_to_load(state, model)
    if found.absent:
        held = groups(list(state), 1) if state else "no tensors under state_dict"
        raise CheckpointError(
            f"{name} is not of this config's model: {len(found.absent)} of "
            f"{len(model.state_dict())} tensors are missing or of another shape, such as "
            f"{found.absent[0]}; it holds {held}"
        )
    return found.unexpected


def backbones_in(
    state: StateDict, model: nn.Module
) -> Iterator[tuple[str, HireMLPNet, dict[str, Tensor]]]:
    """Yield (path, network, what a state dict has of it) of each HireMLP backbone in a model."""
    for path, module in model.named_modules():
        if isinstance(module, HireMLPNet):
            start = f"{path}."
            given = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
            yield path, module, given


def check_backbones(state: StateDict, model: nn.Module, name: str) -> list[str]:
    """Load a state dict that fits the HireMLP backbones of a model.

    Heads and necks may be others. Of a model without such a backbone, something has to fit.

    Returns:
        What has no place in the model.

    Raises:
        CheckpointError: it does not fit, or holds something that is not a number.
    """
    check_numbers(state, model, name)
    for _, network, given in backbones_in(state, model):
        if given:
            match_state_dict(given, network.state_dict(), name)
    found = try_to_load(state, model)
    for path, _, given in backbones_in(state, model):
        if not given and any(key.startswith(f"{path}.") for key in found.absent):
            raise CheckpointError(
                f"{name} holds nothing of the model's {path}; weights of a backbone alone "
                f"are given by --cfg-options model.{path}.init_cfg.type=Pretrained "
                f"model.{path}.init_cfg.checkpoint=FILE"
            )
    if len(found.absent) >= len(model.state_dict()):
        raise CheckpointError(f"{name} holds nothing that fits this config's model")
    return found.unexpected


def check_numbers(state: StateDict, model: nn.Module, name: str) -> None:
    """Raise CheckpointError unless tensors of a state dict are numbers, and finite.

    What is as the model has it already is fine in any case: masks are of bool or infinite. What a
    model makes fit another shape is not looked at.
    """
    for key, tensor in model.state_dict().items():
        value = state.get(key)
        if value is None:
            continue
        if odd := oddity(value):
            raise CheckpointError(f"{name}: {key} is {odd}; expected a plain tensor")
        if value.shape != tensor.shape:
            continue
        try:
            fit(value, tensor)
        except ValueError as error:
            same = value.dtype == tensor.dtype and (
                tensor.is_meta or torch.equal(value.cpu(), tensor.cpu())
            )
            if not same:
                raise CheckpointError(f"{name}: {key} {error}") from error
