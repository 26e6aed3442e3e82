"""The sizes of Hire-MLP: `ARCHS` has the four of the paper, a dict or an `Arch` makes others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

# The smallest allowed entry of each field that holds integers; the gate has dim // 4 channels.
LEAST = dict(depths=1, dims=4, region_sizes=1, shift_periods=1, shift_steps=0)


@dataclass(frozen=True)
class Arch:
    """Hold the sizes of a network, one entry per stage (paper v1, table 1).

    Args:
        depths: blocks in each stage.
        dims: channels of each stage.
        region_sizes: tokens per region, the paper's h = w.
        shift_periods: block j of a stage shifts by `j % period * step` tokens.
        shift_steps: see `shift_periods`.
        mlp_ratios: hidden channels of the channel MLP over `dims`.

    Raises:
        ValueError: the entries differ in length or are too small.
    """

    depths: Sequence[int]
    dims: Sequence[int]
    region_sizes: Sequence[int] = (4, 3, 3, 2)
    shift_periods: Sequence[int] = (2, 2, 3, 2)
    shift_steps: Sequence[int] = (2, 2, 1, 1)
    mlp_ratios: Sequence[float] = (4, 4, 4, 4)

    def __post_init__(self) -> None:
        for field in fields(self):
            values = tuple(getattr(self, field.name))
            object.__setattr__(self, field.name, values)  # the class is frozen
            if len(values) != len(self.dims):
                raise ValueError(
                    f"HireMLP: arch has {len(values)} {field.name} and {len(self.dims)} dims; "
                    f"give one of each per stage"
                )
            least = LEAST.get(field.name)
            if least is not None and not all(isinstance(v, int) and v >= least for v in values):
                raise ValueError(
                    f"HireMLP: arch {field.name}={values}; expected integers from {least} up"
                )
        if any(dim * ratio < 1 for dim, ratio in zip(self.dims, self.mlp_ratios, strict=True)):
            raise ValueError(f"HireMLP: arch mlp_ratios={self.mlp_ratios}; expected positive ones")

    def shift(self, stage: int, block: int) -> int:
        """Return the cross-region shift of a block, in tokens."""
        return block % self.shift_periods[stage] * self.shift_steps[stage]


ARCHS = {
    "tiny": Arch(depths=(2, 2, 4, 2), dims=(64, 128, 320, 512)),
    "small": Arch(depths=(3, 4, 10, 3), dims=(64, 128, 320, 512)),
    "base": Arch(depths=(4, 6, 24, 3), dims=(64, 128, 320, 512)),
    "large": Arch(depths=(4, 6, 24, 3), dims=(96, 192, 384, 768)),
}

ArchLike = str | Arch | Mapping[str, Sequence[int]]


def resolve_arch(arch: ArchLike) -> Arch:
    """Return the `Arch` that a name of `ARCHS`, a dict of fields or an `Arch` stands for.

    Raises:
        ValueError: an unknown name, an unknown or missing field, or unusable values.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f"HireMLP: unknown arch {arch!r}; expected one of {', '.join(ARCHS)}, "
                f"or a dict with depths and dims"
            )
        return ARCHS[arch]
    known = [field.name for field in fields(Arch)]
    if set(arch) - set(known) or not {"depths", "dims"} <= set(arch):
        raise ValueError(
            f"HireMLP: arch dict with {', '.join(sorted(arch))}; it needs depths and dims, "
            f"and takes {', '.join(known)}"
        )
    return Arch(**arch)


def check_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    """Return `out_indices` as a tuple; ValueError unless ascending stages, at least one."""
    indices = tuple(out_indices) if isinstance(out_indices, Sequence) else (out_indices,)
    stages = set(range(num_stages))
    if not indices or not set(indices) <= stages or list(indices) != sorted(set(indices)):
        raise ValueError(
            f"HireMLP: out_indices={out_indices}; expected ascending stages out of "
            f"0..{num_stages - 1}, such as (0, 1, 2, 3)"
        )
    return indices


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"HireMLP: {name}={value!r}; expected one of {', '.join(choices)}")
