"""Finds the blocks with adaLN-Zero that can take TD-LN, and proves on a copy of each that the rest stays the same."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .ada_blocks import TIME_ARGUMENTS, FittedTDLayerNorm, TDBlock, TDDiffusersBlock, model_timestep
from .sites import why_not_exactly, why_not_plain_tensors
from .swap import Adopted, Change, ClassChange, Replacement

Conditioning = Callable[[Tensor, Tensor], Tensor]
"""Timesteps ``[N]`` and class labels ``[N]`` -> what the modulation sees, ``[N, width]``."""


class BlockSite:
    """A block, with where its parts are and how it is called."""

    what = "DiT block, adaLN-Zero"
    norm_names = ("norm1", "norm2")
    linear_name = "adaLN_modulation.1"
    forward: type[Adopted] = TDBlock

    def __init__(self, path: str, block: nn.Module) -> None:
        self.path, self.block = path, block

    def norms(self) -> list[Any]:
        return [self.block.get_submodule(name) for name in self.norm_names]

    def linear(self) -> Any:
        return self.block.get_submodule(self.linear_name)

    def why_not(self) -> str | None:
        """Why the block is not of the form that is swapped, told from its parts."""
        known = ("norm1", "attn", "norm2", "mlp", "adaLN_modulation")
        children = {name: m for name, m in self.block._modules.items() if m is not None}
        missing = [name for name in known if name not in children]
        if missing:
            return f"has no {', '.join(missing)}"
        others = [name for name, m in children.items() if name not in known and not isinstance(m, nn.Identity)]
        if others:
            return f"has other layers: {', '.join(others)}"
        layers = list(children["adaLN_modulation"].children())
        if [type(m) for m in layers] != [nn.SiLU, nn.Linear]:
            return "adaLN_modulation is not SiLU and Linear"
        return self._shapes()

    def _shapes(self) -> str | None:
        first, second = self.norms()
        for layer, cls in ((first, nn.LayerNorm), (second, nn.LayerNorm), (self.linear(), nn.Linear)):
            why_not = why_not_exactly(layer, cls) or why_not_plain_tensors(layer)
            if why_not is not None:
                return f"of its {cls.__name__}: {why_not}"
        shape = first.normalized_shape
        if first is second or second.normalized_shape != shape or (self.linear().out_features,) != (6 * shape[0],):
            return f"its modulation does not give scale, shift and gate of two norms over {list(shape)}"
        return "has no values (meta device)" if self.linear().weight.is_meta else None

    def conditioning(self, owner: nn.Module) -> Conditioning:
        """The published code's: the sum of what ``t_embedder`` and ``y_embedder`` of the model around it give."""
        embedders: Any = nn.ModuleDict()
        for name in ("t_embedder", "y_embedder"):
            if isinstance(getattr(owner, name, None), nn.Module):
                embedders[name] = copy.deepcopy(getattr(owner, name)).eval()
        if "t_embedder" not in embedders:
            raise ValueError(f"the {type(owner).__name__} has no t_embedder: give conditioning=")

        def condition(timesteps: Tensor, labels: Tensor) -> Tensor:
            c = embedders["t_embedder"](timesteps)
            if "y_embedder" in embedders:
                of_class = embedders["y_embedder"]
                c = c + (of_class(labels) if isinstance(of_class, nn.Embedding) else of_class(labels, False))
            return c

        return condition

    def label_count(self, owner: nn.Module) -> int:
        """Of classes, the absent one included; 1 where nothing depends on a class."""
        embedder: Any = getattr(owner, "y_embedder", None)
        if embedder is None:
            return 1
        return getattr(embedder, "embedding_table", embedder).num_embeddings

    def call(self, block: nn.Module, x: Tensor) -> Tensor:
        """The block at one timestep and class."""
        c = torch.linspace(-1, 1, self.linear().in_features).sin().expand(x.shape[0], -1)
        with model_timestep.set_to(torch.zeros(x.shape[0])):
            return block(x, c)


class DiffusersBlockSite(BlockSite):
    what = "BasicTransformerBlock, ada_norm_zero"
    norm_names = ("norm1.norm", "norm3")
    linear_name = "norm1.linear"
    forward = TDDiffusersBlock

    def why_not(self) -> str | None:
        block: Any = self.block
        if block.norm1.emb is None:
            return "norm1 does not embed the timestep"
        for name in ("attn2", "pos_embed", "fuser"):
            if getattr(block, name, None) is not None:
                return f"has {name}"
        return self._shapes()

    def conditioning(self, owner: nn.Module) -> Conditioning:
        block: Any = self.block
        embedder, dtype = copy.deepcopy(block.norm1.emb).eval(), block.norm1.linear.weight.dtype
        return lambda timesteps, labels: embedder(timesteps, labels, hidden_dtype=dtype)

    def label_count(self, owner: nn.Module) -> int:
        block: Any = self.block
        return block.norm1.emb.class_embedder.embedding_table.num_embeddings

    def call(self, block: Any, x: Tensor) -> Tensor:
        block.norm1.emb.eval()  # classes are not dropped while comparing
        same = torch.zeros(x.shape[0], dtype=torch.long)
        return block(x, timestep=same, class_labels=same)


def find_sites(model: nn.Module) -> Iterator[BlockSite]:
    """Every block that has the parts of adaLN-Zero, whether or not it can be swapped."""
    for path, module in model.named_modules():
        if isinstance(getattr(module, "adaLN_modulation", None), nn.Module):
            yield BlockSite(path, module)
        elif _is_diffusers(module, "BasicTransformerBlock") and module.norm_type == "ada_norm_zero":
            yield DiffusersBlockSite(path, module)


def _is_diffusers(module: nn.Module, name: str) -> bool:
    return any(cls.__name__ == name and cls.__module__.startswith("diffusers.") for cls in type(module).mro())


def output_norms(model: nn.Module) -> Iterator[str]:
    """Names of modulated norms outside the blocks: diffusers' DiT computes its last one in its own forward."""
    for path, module in model.named_modules():
        if _is_diffusers(module, "DiTTransformer2DModel"):
            yield f"{path}.norm_out".lstrip(".")


def owner_of(model: nn.Module, path: str) -> nn.Module | None:
    """The nearest module around the block that is called with the timestep second."""
    names = path.split(".")
    for depth in range(len(names) - 1, -1, -1):
        module = model.get_submodule(".".join(names[:depth]))
        parameters = list(inspect.signature(module.forward).parameters)
        if len(parameters) > 1 and parameters[1] in TIME_ARGUMENTS:
            return module
    return None


def swap(site: BlockSite, norms: Sequence[FittedTDLayerNorm]) -> list[Change]:
    """Put the fitted norms and what is left of the modulation into the block."""
    linear = site.linear()
    alphas = _alphas(linear)
    changes: list[Change] = [
        Replacement(site.block, old, new) for old, new in zip((*site.norms(), linear), (*norms, alphas), strict=True)
    ]
    return [*changes, ClassChange(site.path, site.block, site.forward)]


def _alphas(linear: nn.Linear) -> nn.Linear:
    """The rows that give the two gates: the third and the last of shift, scale, gate, shift, scale, gate."""
    D = linear.out_features // 6
    weight = linear.weight
    kept = nn.utils.skip_init(
        nn.Linear, linear.in_features, 2 * D, bias=linear.bias is not None, device=weight.device, dtype=weight.dtype
    )
    for name, parameter in kept.named_parameters():
        source = getattr(linear, name)
        rows = source.detach().unflatten(0, (6, D))
        parameter.data.copy_(torch.cat((rows[2], rows[5])))
        parameter.requires_grad_(source.requires_grad)
    return kept.train(linear.training)


def why_not_equal(site: BlockSite) -> str | None:
    """Why the block is not what its parts suggest: a copy of it against TD-LN, at one timestep and class."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for training in (False, True):
                found, wanted = _tried(site, training)
                if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-4, atol=1e-4):
                    return "computes something else than adaLN-Zero, attention and MLP"
    except Exception as error:  # whatever another project's layer may raise
        first_line = str(error).partition("\n")[0]
        return f"could not be tried on [2, 4, D]: {type(error).__name__}: {first_line}"
    return None


def _tried(site: BlockSite, training: bool) -> tuple[Tensor, Tensor]:
    """Output of a copy with its norms fixed, and without."""
    copied = copy.deepcopy(site.block).to("cpu", torch.float32).train(training)
    trial = type(site)(site.path, copied)
    for parameter in trial.linear().parameters():  # may start at zero, where every modulation is alike
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    x = torch.randn(2, 4, trial.norms()[0].normalized_shape[0])
    results, seen = [], []
    handle = trial.linear().register_forward_hook(lambda module, args, out: seen.append(out[0]))
    state = torch.get_rng_state()
    results.append(trial.call(copied, x))
    handle.remove()
    six = seen[0].unflatten(0, (6, -1))
    norms = [
        fixed(old, scale, shift) for old, shift, scale in zip(trial.norms(), six[[0, 3]], six[[1, 4]], strict=True)
    ]
    swap(trial, norms)
    torch.set_rng_state(state)
    results.append(trial.call(copied, x))
    return results[1], results[0]


def fixed(norm: nn.LayerNorm, scale: Tensor, shift: Tensor) -> FittedTDLayerNorm:
    """The modulated norm at one scale and shift ``[D]``."""
    new = FittedTDLayerNorm(norm.normalized_shape, eps=norm.eps)
    weight, bias = modulated(norm, scale, shift)
    new._take(weight, bias)
    return new


def modulated(norm: nn.LayerNorm, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The factor and the summand ``[..., D]`` of ``norm(x) (1 + scale) + shift``, its own weight and bias included."""
    factor, summand = 1 + scale, shift
    if norm.bias is not None:
        summand = summand + factor * norm.bias
    return (factor if norm.weight is None else factor * norm.weight), summand
