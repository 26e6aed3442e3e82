"""Save checkpoints whole, remove them late, read them as data, compare them with the model."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as HostCheckpointHook
from mmengine.hooks import Hook
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, Runner, find_latest_checkpoint
from torch import Tensor, nn

from ..checkpoint import (
    CONTAINERS,
    CheckpointError,
    StateDict,
    convert_state_dict,
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
from ..weights import check_digest, digest_in, fetch
from .batches import tested
from .builds import arguments_of
from .resume import check_undamaged, meta_of_training

OUTDATED = "outdated_ckpts"  # in the log that checkpoints hold: files that are to be removed

# Saving -----------------------------------------------------------------------------------------


@HOOKS.register_module()
class CheckpointHook(HostCheckpointHook):
    """Save checkpoints as mmengine's hook does, each whole, and remove old ones after that.

    mmengine removes the old one first, and a run that is killed between has neither. The options
    are mmengine's.
    """

    def __init__(self, *args: Any, backend_args: dict[str, Any] | None = None, **options: Any):
        # mmengine hands others on to what saves, which refuses them after the first epoch.
        known = arguments_of(HostCheckpointHook) | arguments_of(Runner.save_checkpoint)
        for name in options.keys() - known:
            raise TypeError(f"CheckpointHook got an unexpected keyword argument '{name}'")
        local = "://" not in str(options.get("out_dir"))
        if local and backend_args is None and options.get("file_client_args") is None:
            backend_args = dict(backend=WHOLE)
        super().__init__(*args, backend_args=backend_args, **options)
        self.can_be_loaded = False  # once the first checkpoint was read again

    def before_train(self, runner: Any) -> None:
        super().before_train(runner)
        self.file_backend: Any = LateBackend(self.file_backend, runner.message_hub)
        self.remove_outdated(runner)  # what a crash kept from being removed

    def after_train_iter(self, runner: Any, *args: Any, **options: Any) -> None:
        super().after_train_iter(runner, *args, **options)
        self.remove_outdated(runner)

    def after_train_epoch(self, runner: Any) -> None:
        super().after_train_epoch(runner)
        self.remove_outdated(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any]) -> None:
        super().after_val_epoch(runner, metrics)
        self.remove_outdated(runner)

    def remove_outdated(self, runner: Any) -> None:
        """Remove what is outdated, of this work dir alone, now that the newer one is whole.

        The paths are those of the training whose checkpoint this one went on from; where that had
        another work dir, its files stay.
        """
        if is_main_process() and self.last_ckpt is not None and not self.can_be_loaded:
            # What a hook or a data set puts into a checkpoint may not be read again: that is said
            # at the first checkpoint, not after a crash.
            try:
                if os.path.isfile(self.last_ckpt):
                    check_undamaged(self.last_ckpt)
            except UserError as error:
                raise UserError(f"what this training saves cannot be loaded: {error}") from error
            self.can_be_loaded = True
        outdated = runner.message_hub.runtime_info.get(OUTDATED, [])
        best = {getattr(self, "best_ckpt_path", None), self.last_ckpt}
        best.update(getattr(self, "best_ckpt_path_dict", {}).values())
        for path in outdated:
            own = self.file_backend.join_path(self.out_dir, os.path.basename(path))
            if path == own and path not in best and is_main_process():
                self.file_backend.remove_now(path)
        if outdated:
            runner.message_hub.update_info(OUTDATED, [])


class LateBackend:
    """Note what a file backend is to remove, in mmengine's log, which every checkpoint holds."""

    def __init__(self, backend: Any, hub: Any) -> None:
        self.backend, self.hub = backend, hub

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        """Note a path for `CheckpointHook.remove_outdated`."""
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
    """Load a local file or a URL as mmengine does, but as data, without objects of its making."""
    path = fetch(filename)
    check_digest(path, digest_in(filename))
    data = load_data(path, device=map_location)
    if not isinstance(data, dict):
        raise CheckpointError(f"{filename} holds a {type(data).__name__}; expected a checkpoint")
    # `dict.items`, for a file can put what it likes before an object's own methods.
    checkpoint = dict(dict.items(data))
    if isinstance(checkpoint.get("meta"), dict):
        # A config is a program. mmengine would run it to learn how many GPUs it names.
        meta = dict.items(checkpoint["meta"])
        checkpoint["meta"] = {k: v for k, v in meta if k != "config"}
    state = checkpoint.get("state_dict")
    if isinstance(state, dict):
        odd = next((key for key in dict.keys(state) if not isinstance(key, str)), None)
        if odd is not None:
            raise CheckpointError(f"{filename} has {short(odd)} among the names of its state_dict")
        tensors = OrderedDict((k.removeprefix("module."), v) for k, v in dict.items(state))
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
        path = runner.cfg.get("load_from") or find_latest_checkpoint(runner.work_dir)
        if os.path.isdir(str(path)):  # saved in parts, by and for a strategy
            return
        name = f"checkpoint {path}"
        state = checkpoint.get("state_dict", checkpoint)
        model = whole_model(runner)
        resumed = bool(runner.cfg.get("resume"))
        trains = isinstance(runner.optim_wrapper, (BaseOptimWrapper, OptimWrapperDict))
        if resumed and trains:
            meta_of_training(checkpoint, name)
            checkpoint["meta"].pop("config", None)  # of a loader that is not ours
        whole = resumed or not trains
        for key in CONTAINERS if whole and not tensors_of(state) else ():
            if isinstance(checkpoint.get(key), dict):
                refuse_backbone(tensors_of(checkpoint[key]), name)
        left = load_checked(tensors_of(state), model, name, whole)
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
    return tested(runner.model)


def tensors_of(state: Mapping[str, Any]) -> StateDict:
    """Return the tensors of a state dict, with what modules say of their versions there."""
    tensors = OrderedDict((key, plain(v)) for key, v in state.items() if isinstance(v, Tensor))
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        tensors.__dict__["_metadata"] = versions
    return tensors


def load_checked(state: StateDict, model: nn.Module, name: str, whole: bool = True) -> list[str]:
    """Load a state dict into a model, or raise CheckpointError; list names without a place in it.

    With `whole`, every tensor of the model has to be there, and no other of its HireMLP backbones,
    as of a deeper arch. Without, these backbones have to fit; where there is none, anything.
    """
    check_numbers(state, model, name)
    backbones = {p: m for p, m in model.named_modules() if isinstance(m, HireMLPNet)}
    lacking = []  # backbones of which nothing is there
    for path, network in backbones.items():
        start, expected = f"{path}.", network.state_dict()
        given = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
        if not given:
            lacking.append(path)
        elif not whole or given.keys() != expected.keys():
            match_state_dict(given, expected, name)
    absent, unexpected = try_to_load(state, model)
    if absent and whole:
        refuse_backbone(state, name)
        held = groups(list(state), 1) if state else "no tensors under state_dict"
        raise CheckpointError(
            f"{name} is not of this config's model: {len(absent)} of {len(model.state_dict())} "
            f"tensors are missing or of another shape, such as {absent[-1]}; it holds {held}"
        )
    for path in lacking:
        if any(key.startswith(f"{path}.") for key in absent):
            raise CheckpointError(
                f"{name} holds nothing of the model's {path}; weights of a backbone alone "
                f"are given by --cfg-options model.{path}.init_cfg.type=Pretrained "
                f"model.{path}.init_cfg.checkpoint=FILE"
            )
    if not whole and len(absent) >= len(model.state_dict()):
        raise CheckpointError(f"{name} holds nothing that fits this config's model")
    return unexpected


def refuse_backbone(state: StateDict, name: str) -> None:
    """Raise CheckpointError for weights of a Hire-MLP alone, by our names or the authors'."""
    try:
        convert_state_dict(state)  # which takes no name of another part
    except CheckpointError:
        return
    if state:
        classifier = "; hire-mlp convert --classifier makes a classifier's of it"
        raise CheckpointError(
            f"{name} holds a backbone alone, and a checkpoint of the whole model is needed"
            f"{classifier if 'head.weight' in state else ''}; to train from it, name it in "
            f"model.backbone.init_cfg.checkpoint"
        )


def try_to_load(state: StateDict, model: nn.Module) -> tuple[list[str], list[str]]:
    """Load a state dict into a model; list what is absent or of another shape, and what is left."""
    # Comparing names and shapes is not enough: the hosts' models rename and resize what they load.
    wrong: list[str] = []
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a model without its numbers
                found = model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            mismatched = re.findall(r"size mismatch for ([^:\s]+):", str(error))
            if not mismatched:
                raise
            wrong += mismatched
            rest = {key: value for key, value in state.items() if key not in wrong}
            if len(rest) == len(state):  # the model has renamed it
                return wrong, []
            state = rest
        else:
            absent = [*wrong, *(key for key in found.missing_keys if key not in wrong)]
            return absent, list(found.unexpected_keys)


def check_numbers(state: StateDict, model: nn.Module, name: str) -> None:
    """Raise CheckpointError where a tensor of a state dict is not of numbers, or not finite."""
    for key, tensor in model.state_dict().items():
        value = state.get(key)
        if value is None:
            continue
        if odd := oddity(value):
            raise CheckpointError(f"{name}: {key} is {odd}; expected a plain tensor")
        if value.shape != tensor.shape:  # which some models make fit
            continue
        try:
            fit(value, tensor)
        except ValueError as error:
            # A tensor that equals the model's is fine in any case: masks are of bool or infinite.
            comparable = value.dtype == tensor.dtype
            if not comparable or not (tensor.is_meta or torch.equal(value.cpu(), tensor.cpu())):
                raise CheckpointError(f"{name}: {key} {error}") from error
