"""Rewriting a model's blocks: twelve operators are found in each and replaced by three, or the block is left alone."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from ml_core.errors import EngineError
from ml_core.layers.families import FAMILIES, Family, at
from ml_core.layers.fused_blocks import FusedBlock
from ml_core.layers.superops import SuperOps

Model = TypeVar("Model", bound=nn.Module)
TOLERANCE = 1e-5  # relative RMS, float64: transformers' RMSNorm computes in fp32 whatever comes in
_FUSED = ("norm+q+k+v", "attention+residual", "norm+mlp+residual")


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """One block: its name and class, its operators before and after, and, where it was left alone, why."""

    name: str
    block: str
    family: str | None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    skipped: str | None = None

    def __str__(self) -> str:
        if self.skipped is not None:
            return f"{self.name} ({self.block}): left alone, {self.skipped}"
        return f"{self.name} ({self.block}, {self.family}): {len(self.before)} operators -> {len(self.after)}"


@dataclass(frozen=True, kw_only=True)
class FuseReport:
    """All blocks that were looked at."""

    blocks: tuple[BlockReport, ...]

    @property
    def fused(self) -> tuple[BlockReport, ...]:
        """Those that run on super-operators now."""
        return tuple(each for each in self.blocks if each.skipped is None)

    @property
    def skipped(self) -> tuple[BlockReport, ...]:
        """Those that were left alone."""
        return tuple(each for each in self.blocks if each.skipped is not None)

    def __str__(self) -> str:
        return "\n".join(map(str, self.blocks)) or "no block of any known structure"


def fuse(model: Model) -> tuple[Model, FuseReport]:
    """The same model, its known blocks on super-operators, and what was done to each block and what was not.

    Known: BERT, MPNet and Llama shapes of transformers, timm's ViT, and blocks.Block. A block is found by where its
    layers are and what they are, every one of them; then it is run against its fused form on a probe with masks and
    positions, in float64, and changed only if both agree. Parameters, their names and the state dict stay. Tied
    parameters and shared modules are refused by name. Raises nothing for what it does not know: it says so.
    """
    shared = _shared(model)
    reports: list[BlockReport] = []
    for name, block in list(model.named_modules()):
        if any(name.startswith(f"{report.name}.") or report.name == "" for report in reports):
            continue
        family = next((each for each in FAMILIES if each.fits(block)), None)
        if isinstance(block, FusedBlock):
            reports.append(_left(name, block, family=family, why="it is fused already"))
        elif family is not None:
            reports.append(_fuse_block(name, block, family=family, shared=shared))
        elif _looks_like_block(name, block, model=model):
            reports.append(_left(name, block, family=None, why="its structure is not known"))
    return model, FuseReport(blocks=tuple(reports))


def unfuse(model: Model) -> Model:
    """The same model with every fused block as it was; weights that were trained meanwhile stay."""
    for block in model.modules():
        if isinstance(block, FusedBlock):
            hooks = block._load_state_dict_post_hooks
            for key in [key for key, hook in hooks.items() if hook is _pack_after_load]:
                del hooks[key]
            block.__class__ = type(block).__bases__[1]
            del block.__dict__["_super_ops"], block.__dict__["_taken"]
    return model


def super_ops(model: nn.Module) -> dict[str, SuperOps]:
    """The super-operators of every fused block, by the block's name; `superops.dispatch` says what path each takes."""
    return {name: block._super_ops for name, block in model.named_modules() if isinstance(block, FusedBlock)}


def _fuse_block(name: str, block: nn.Module, *, family: Family, shared: Mapping[str, str]) -> BlockReport:
    why = _refusal(name, block, family=family, shared=shared)
    if why is None:
        try:
            off = _probe(block, family=family)
            if not off <= TOLERANCE:
                why = f"its output is not that of the family {family.name} (relative error {off:.1e})"
        except EngineError as error:
            why = str(error)
        except (RuntimeError, TypeError, AttributeError, ValueError) as error:
            why = f"its probe failed: {error}"
    if why is not None:
        return _left(name, block, family=family, why=why)
    kind = type(block).__name__
    _adopt(block, family=family)
    return BlockReport(name=name, block=kind, family=family.name, before=family.operators, after=_FUSED)


def _adopt(block: nn.Module, *, family: Family) -> None:
    ops = family.build(block)
    places = [path.rpartition(".") for path in family.roles if at(block, path) is not None]
    taken = [
        (block.get_submodule(parent), name, at(block, f"{parent}.{name}".lstrip("."))) for parent, _, name in places
    ]
    block.__class__ = _fused_class(type(block), family)
    block.__dict__.update(_super_ops=ops, _taken=taken)
    block.register_load_state_dict_post_hook(_pack_after_load)


@cache
def _fused_class(base: type[nn.Module], family: Family) -> type[FusedBlock]:
    return type(f"Fused{base.__name__}", (family.forward, base), {"__module__": __name__})


def _pack_after_load(block: nn.Module, _: object) -> None:
    if isinstance(block, FusedBlock):
        block._super_ops.pack()


@torch.no_grad()
def _probe(block: nn.Module, *, family: Family) -> float:
    """How far the fused form is off, relative to what the block adds to its input; on a copy, in float64."""
    twin = copy.deepcopy(block).double().eval()
    family.build(twin)  # a layer that is not what it looks like is named here
    d = at(twin, family.projections[0]).in_features
    weight = at(twin, family.projections[0]).weight
    x = torch.randn(2, 5, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(weight.device)
    call = family.probe(twin, x)
    wanted = _first(twin.forward(x, **call))
    _adopt(twin, family=family)
    got = _first(twin.forward(x, **call))
    return float((got - wanted).norm() / (wanted - x).norm().clamp_min(1e-30))


def _first(said: Tensor | tuple[Tensor, ...]) -> Tensor:
    return said[0] if isinstance(said, tuple) else said


def _refusal(name: str, block: nn.Module, *, family: Family, shared: Mapping[str, str]) -> str | None:
    """Why the block cannot be fused, or None."""
    for path, part in block.named_modules():
        full = f"{name}.{path}".strip(".")
        if full in shared:
            return f"{path or 'it'} is shared with {shared[full]}"
        if path and (why := _touched(path, part)):
            return why
        if not part._modules and not isinstance(part, nn.Identity) and not _accounted(path, family=family):
            return f"{path} ({type(part).__name__}) has no place in the family {family.name}"
    for path, parameter in block.named_parameters():
        full = f"{name}.{path}".lstrip(".")
        if full in shared:
            return f"{path} is tied to {shared[full]}"
        if not _accounted(path.rpartition(".")[0], family=family):
            return f"the parameter {path} has no place in the family {family.name}"
        if parameter.is_meta:
            return f"{path} has no values yet (device meta)"
    for path in family.linears:
        if type(at(block, path)) is not nn.Linear:
            return f"{path} is a {type(at(block, path)).__name__}, not a Linear"
    return family.refuse(block)


def _touched(path: str, part: nn.Module) -> str | None:
    """Hooks and replaced forwards of inner layers would not run any more."""
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    # transformers' own recorders: of attention weights, which a fused block refuses to be asked for
    own = [hook for each in hooks for hook in each.values() if hook.__module__ != "transformers.utils.output_capturing"]
    if own:
        return f"{path} has a hook, which would not run"
    return f"{path}.forward was replaced" if "forward" in part.__dict__ else None


def _accounted(path: str, *, family: Family) -> bool:
    return path in family.roles or any(path == kept or path.startswith(f"{kept}.") for kept in family.kept)


def _shared(model: nn.Module) -> dict[str, str]:
    """Names of modules and parameters that the model has under another name too, and that other name."""
    modules, tensors = defaultdict(list), defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if module._parameters or module._modules:
            modules[id(module)].append(name)
        for own, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta and parameter.numel():
                tensors[(parameter.device, parameter.data_ptr())].append(f"{name}.{own}".lstrip("."))
    found: dict[str, str] = {}
    for names in (*modules.values(), *tensors.values()):
        for name, other in _pairs(names):
            found[name] = other
    return found


def _pairs(names: list[str]) -> Iterator[tuple[str, str]]:
    if len(names) > 1:
        yield from ((name, next(other for other in names if other != name)) for name in names)


def _left(name: str, block: nn.Module, *, family: Family | None, why: str) -> BlockReport:
    return BlockReport(name=name, block=type(block).__name__, family=family.name if family else None, skipped=why)


def _looks_like_block(name: str, block: nn.Module, *, model: nn.Module) -> bool:
    """An element of a stack with a norm and at least three matrices, whatever their layers are called."""
    parent = model.get_submodule(name.rpartition(".")[0]) if name else None
    if not isinstance(parent, nn.ModuleList | nn.Sequential) or isinstance(block, nn.ModuleList | nn.Sequential):
        return False
    inside = [part for path, part in block.named_modules() if path]
    norms = any("norm" in type(part).__name__.lower() for part in inside)
    matrices = sum(1 for part in inside for p in part._parameters.values() if p is not None and p.ndim == 2)
    return norms and matrices >= 3
