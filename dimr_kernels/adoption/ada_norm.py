"""adaLN-Zero of a DiT (Peebles and Xie 2023) turned into TD-LN: an approximation, on request only.

The scale and shift of each modulated norm are tabulated over timesteps and classes, and TD-LN is fitted to the table.
Only the modulation's two gates (alpha) stay, which scale what a block adds to its stream.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..dispatch import ScopedValue
from ..nn import TDLayerNorm
from .fit import Gated, fit_gated
from .rules import check_module, check_not_offloaded, class_problem, tensor_problem
from .swap import Adopted, AdoptionReport, Change, ClassChange, Replacement

Conditioning = Callable[[Tensor, Tensor], Tensor]
"""Timesteps ``[N]`` and class labels ``[N]`` -> the modulation's input ``[N, width]``."""

TIMESTEPS, LABELS = 100, 16  # tabulated unless told otherwise
ROWS_AT_ONCE = 4096  # timesteps times classes
FITS_SHOWN = 8  # in a report's text
TIME_ARGUMENTS = ("t", "timestep", "timesteps")


@dataclasses.dataclass(frozen=True)
class NormFit:
    """The error of one fitted vector against what the modulation gave, over all timesteps, classes and channels.

    Attributes:
        path: the norm's.
        vector: "scale" or "shift".
        unexplained: share of the variance about each channel's mean that the fit leaves; 0 is exact, 1 a constant.
        class_share: share of that variance that lies between classes at one timestep, which no TD-LN can follow.
        rms: root mean square of the difference.
        max_abs: largest difference.
    """

    path: str
    vector: str
    unexplained: float
    class_share: float
    rms: float
    max_abs: float

    def __str__(self) -> str:
        return (
            f"{self.path} {self.vector}: {self.unexplained:.3g} of the variance unexplained "
            f"({self.class_share:.3g} between classes), rms {self.rms:.3g}, max {self.max_abs:.3g}"
        )


@dataclasses.dataclass
class AdaNormReport(AdoptionReport):
    """Also how well each norm was fitted, and the model's parameters before and after."""

    fits: list[NormFit] = dataclasses.field(default_factory=list)
    parameters: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [super().__str__(), f"  parameters: {before:,} -> {after:,}"]
        worst = sorted(self.fits, key=lambda fit: -fit.unexplained)[:FITS_SHOWN]
        if worst:
            lines.append(f"  the {len(worst)} worst of {len(self.fits)} fits:")
        return "\n".join(lines + [f"  {fit}" for fit in worst])


def adopt_ada_norm(
    model: nn.Module,
    *,
    timesteps: Tensor | Sequence[float] | None = None,
    labels: Tensor | Sequence[int] | None = None,
    time_range: tuple[float, float] = (0.0, 1000.0),
    gate: str = "channel",
    conditioning: Conditioning | None = None,
) -> AdaNormReport:
    """Replace the scale and shift of a DiT's adaLN-Zero by TD-LN's, in place; the gates (alpha) stay as they are.

    TD-LN's scale and shift follow the timestep alone and have one form, ``q + sigmoid(w t + o) (p - q)``. They are
    fitted by least squares to what the modulation gives over timesteps, averaged over classes, so the model computes
    something else afterwards: the report says how far each vector is off, :func:`output_error` what that does to the
    output, and some training usually has to follow. Two thirds of the modulation's parameters go.

    Swapped are diffusers' ``BasicTransformerBlock`` with ``ada_norm_zero`` (``DiTTransformer2DModel``) and blocks as in
    the published DiT code, ``block(x, c)`` with ``norm1``, ``attn``, ``norm2``, ``mlp`` and ``adaLN_modulation``, in a
    model called with the timestep second. A copy of each block is tried first; one that computes something else stays.

    Args:
        model: changed in place; its forward keeps its signature.
        timesteps: the model's own, to fit to; None is 100 of them, evenly through ``time_range`` without its end.
        labels: classes to average over; None is 16 of them, evenly from the first to the last (the absent class).
        time_range: the timesteps that TD-LN sees as -1 and 1.
        gate: "channel" has one gate per channel, "scalar" one for all.
        conditioning: timesteps ``[N]`` and labels ``[N]`` -> the modulation's input ``[N, width]``; None is the sum of
            ``t_embedder`` and ``y_embedder`` of the model, for diffusers the block's own embedding.

    Returns:
        The blocks that were swapped, those that were left with the reason, and the fits; ``undo()`` restores the model.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: a bad argument, an offloaded model, or nothing to embed the timestep with.
    """
    check_module("adopt_ada_norm", model)
    check_not_offloaded("adopt_ada_norm", model)
    checks.check_choice("adopt_ada_norm", "gate", gate, ("channel", "scalar"))
    low, high = map(float, time_range)
    if not low < high:
        raise ValueError(f"adopt_ada_norm: time_range must be two rising numbers, got {time_range}")
    before = _parameter_count(model)
    report = AdaNormReport()
    fitted = []
    for block, timed_model in _swappable_blocks(model, report):
        condition = block.conditioning(timed_model) if conditioning is None else conditioning
        device = block.linear().weight.device
        classes = _labels(labels, block.label_count(timed_model) if labels is None else 0, device)
        times = _timesteps(timesteps, low, high, device)
        tables = _tabulate(block, condition, times, classes)
        fitted.append((block, timed_model, _fit_norms(report, block, tables, times, gate, (low, high))))
    for block, _, norms in fitted:  # now that nothing can fail
        report.add_swapped(block.path, block.what, "TD-LN fitted to scale and shift", *_swap(block, norms))
    for owner in dict.fromkeys(owner for block, owner, _ in fitted if not isinstance(block, DiffusersBlock)):
        path = next(name for name, module in model.named_modules() if module is owner)
        report.add_note(f"{path or 'the model'} hands its timestep to its blocks", ClassChange(path, owner, TimedModel))
    report.parameters = (before, _parameter_count(model))
    return report


def _parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _timesteps(timesteps: Tensor | Sequence[float] | None, low: float, high: float, device: torch.device) -> Tensor:
    if timesteps is None:
        return low + (high - low) * torch.arange(TIMESTEPS, device=device) / TIMESTEPS
    return torch.as_tensor(timesteps, device=device).flatten()


def _labels(labels: Tensor | Sequence[int] | None, count: int, device: torch.device) -> Tensor:
    if labels is None:
        return torch.linspace(0, count - 1, min(count, LABELS), device=device).round().long()
    found = torch.as_tensor(labels, device=device).flatten()
    if found.numel() == 0 or found.is_floating_point():
        raise ValueError(f"adopt_ada_norm: labels must be one or more whole numbers, got {labels}")
    return found


@dataclasses.dataclass(frozen=True)
class OutputError:
    """``relative``: norm of the difference over the norm of the reference; ``max_abs``: its largest element."""

    relative: float
    max_abs: float


@torch.no_grad()
def output_error(reference: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> OutputError:
    """Compare two models' outputs on the same arguments: the first tensor of what each returns.

    Make the reference with ``copy.deepcopy`` before a swap. Both run as they are: in training mode dropout differs too.
    """
    wanted, found = (_first_tensor(m(*args, **kwargs)).double() for m in (reference, model))
    error = found - wanted
    return OutputError((error.norm() / wanted.norm()).item(), error.abs().max().item())


def _first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output


# Forwards with TD-LN in place of the modulated norms.

model_timestep: ScopedValue[Tensor | None] = ScopedValue("dimr_kernels_model_timestep", None)


class FittedTDLayerNorm(TDLayerNorm):
    """TD-LN that knows which timesteps of its model are ``t = -1`` and ``t = 1``."""

    time_range = (0.0, 1000.0)

    def time(self, timestep: Tensor) -> Tensor:
        return _scaled(timestep.to(torch.promote_types(timestep.dtype, torch.float32)), self.time_range)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, time_range={self.time_range}"


def _scaled(timestep: Tensor, time_range: tuple[float, float]) -> Tensor:
    """Map the range of timesteps to [-1, 1]."""
    low, high = time_range
    return (timestep - low) * (2 / (high - low)) - 1


class TimedModel(Adopted):
    """A model whose blocks get the conditioning alone: its forward keeps the timestep for them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        timestep = args[1] if len(args) > 1 else next((kwargs[name] for name in TIME_ARGUMENTS if name in kwargs), None)
        with model_timestep.set_to(timestep):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class TDBlock(Adopted):
    """``block(x [B, L, D], c [B, width])`` of the published DiT code."""

    norm1: Any
    norm2: Any
    attn: Any
    mlp: Any
    adaLN_modulation: Any

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        timestep = model_timestep.get()
        if timestep is None:
            raise ValueError(
                f"{type(self).__name__}: no timestep: the model's forward keeps it, so call the model (when "
                f"checkpointed blocks run again for the backward, that forward has ended)"
            )
        t = self.norm1.time(timestep)
        alpha1, alpha2 = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        h, x = self.norm2(alpha1 * self.attn(self.norm1(x, t)), t, residual=x)
        return x + alpha2 * self.mlp(h)


class TDDiffusersBlock(Adopted):
    """diffusers' ``BasicTransformerBlock`` with ``norm_type="ada_norm_zero"`` and self-attention only."""

    norm1: Any
    norm3: Any
    attn1: Any
    ff: Any

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        ada = self.norm1
        c = ada.emb(timestep, class_labels, hidden_dtype=hidden_states.dtype)
        alpha1, alpha2 = ada.linear(ada.silu(c))[:, None].chunk(2, dim=-1)
        t = ada.norm.time(timestep)
        h = self.attn1(ada.norm(hidden_states, t), attention_mask=attention_mask, **(cross_attention_kwargs or {}))
        h, hidden_states = self.norm3(alpha1 * h, t, residual=hidden_states)
        return hidden_states + alpha2 * self.ff(h)


# Blocks that may be swapped.


class Block:
    """A block of the published DiT code: the places of its parts, and how it is called."""

    what = "DiT block, adaLN-Zero"
    norm_names = ("norm1", "norm2")
    linear_name = "adaLN_modulation.1"
    forward: type[Adopted] = TDBlock

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path, self.module = path, module

    def norms(self) -> list[Any]:
        return [self.module.get_submodule(name) for name in self.norm_names]

    def linear(self) -> Any:
        return self.module.get_submodule(self.linear_name)

    def parts_problem(self) -> str | None:
        """Say what about its parts is not of the form that is swapped."""
        known = ("norm1", "attn", "norm2", "mlp", "adaLN_modulation")
        children = {name: m for name, m in self.module._modules.items() if m is not None}
        missing = [name for name in known if name not in children]
        if missing:
            return f"has no {', '.join(missing)}"
        others = [name for name, m in children.items() if name not in known and not isinstance(m, nn.Identity)]
        if others:
            return f"has other layers: {', '.join(others)}"
        layers = list(children["adaLN_modulation"].children())
        if [type(m) for m in layers] != [nn.SiLU, nn.Linear]:
            return "adaLN_modulation is not SiLU and Linear"
        return self._layer_problem()

    def _layer_problem(self) -> str | None:
        first, second = self.norms()
        for layer, cls in ((first, nn.LayerNorm), (second, nn.LayerNorm), (self.linear(), nn.Linear)):
            problem = class_problem(layer, cls) or tensor_problem(layer)
            if problem is not None:
                return f"of its {cls.__name__}: {problem}"
        shape = first.normalized_shape
        if first is second or second.normalized_shape != shape or (self.linear().out_features,) != (6 * shape[0],):
            return f"its modulation does not give scale, shift and gate of two norms over {list(shape)}"
        return "has no values (meta device)" if self.linear().weight.is_meta else None

    def conditioning(self, timed_model: nn.Module) -> Conditioning:
        """Return the published code's: the sum of what ``t_embedder`` and ``y_embedder`` of the model give."""
        embedders: Any = nn.ModuleDict()
        for name in ("t_embedder", "y_embedder"):
            if isinstance(getattr(timed_model, name, None), nn.Module):
                embedders[name] = copy.deepcopy(getattr(timed_model, name)).eval()
        if "t_embedder" not in embedders:
            raise ValueError(f"the {type(timed_model).__name__} has no t_embedder: give conditioning=")

        def condition(timesteps: Tensor, labels: Tensor) -> Tensor:
            c = embedders["t_embedder"](timesteps)
            if "y_embedder" in embedders:
                embed_class = embedders["y_embedder"]
                c = c + (embed_class(labels) if isinstance(embed_class, nn.Embedding) else embed_class(labels, False))
            return c

        return condition

    def label_count(self, timed_model: nn.Module) -> int:
        """Count the classes, the absent one included; 1 where nothing depends on a class."""
        embedder: Any = getattr(timed_model, "y_embedder", None)
        if embedder is None:
            return 1
        return getattr(embedder, "embedding_table", embedder).num_embeddings

    def call(self, x: Tensor) -> Tensor:
        """Run the block at one timestep and class."""
        c = torch.linspace(-1, 1, self.linear().in_features).sin().expand(x.shape[0], -1)
        with model_timestep.set_to(torch.zeros(x.shape[0])):
            return self.module(x, c)


class DiffusersBlock(Block):
    """diffusers' ``BasicTransformerBlock``, which embeds timestep and class by itself."""

    what = "BasicTransformerBlock, ada_norm_zero"
    norm_names = ("norm1.norm", "norm3")
    linear_name = "norm1.linear"
    forward = TDDiffusersBlock
    module: Any

    def parts_problem(self) -> str | None:
        if self.module.norm1.emb is None:
            return "norm1 does not embed the timestep"
        for name in ("attn2", "pos_embed", "fuser"):
            if getattr(self.module, name, None) is not None:
                return f"has {name}"
        return self._layer_problem()

    def conditioning(self, timed_model: nn.Module) -> Conditioning:
        embedder, dtype = copy.deepcopy(self.module.norm1.emb).eval(), self.module.norm1.linear.weight.dtype
        return lambda timesteps, labels: embedder(timesteps, labels, hidden_dtype=dtype)

    def label_count(self, timed_model: nn.Module) -> int:
        return self.module.norm1.emb.class_embedder.embedding_table.num_embeddings

    def call(self, x: Tensor) -> Tensor:
        self.module.norm1.emb.eval()  # classes are not dropped while comparing
        same = torch.zeros(x.shape[0], dtype=torch.long)
        return self.module(x, timestep=same, class_labels=same)


def _swappable_blocks(model: nn.Module, report: AdoptionReport) -> list[tuple[Block, nn.Module]]:
    """Find the blocks, each with the model that is called with their timestep; the report gets those that are left."""
    found = []
    for block in list(_blocks_of(model)):
        timed_model = model if isinstance(block, DiffusersBlock) else _timed_model_around(model, block.path)
        problem = block.parts_problem() or _forward_problem(block)
        if problem is None and timed_model is None:
            problem = "no model around it is called with the timestep (t, timestep or timesteps) second"
        if problem is not None:
            report.add_left(block.path, block.what, problem)
        elif timed_model is not None:
            found.append((block, timed_model))
    for path, module in model.named_modules():
        if _is_diffusers(module, "DiTTransformer2DModel"):
            why = "the model's own forward computes scale and shift"
            report.add_left(f"{path}.norm_out".lstrip("."), "nn.LayerNorm, modulated", why)
    return found


def _blocks_of(model: nn.Module) -> Iterator[Block]:
    """Yield every module that has the parts of adaLN-Zero, whether or not it can be swapped."""
    for path, module in model.named_modules():
        if isinstance(getattr(module, "adaLN_modulation", None), nn.Module):
            yield Block(path, module)
        elif _is_diffusers(module, "BasicTransformerBlock") and module.norm_type == "ada_norm_zero":
            yield DiffusersBlock(path, module)


def _is_diffusers(module: nn.Module, name: str) -> bool:
    return any(cls.__name__ == name and cls.__module__.startswith("diffusers.") for cls in type(module).mro())


def _timed_model_around(model: nn.Module, path: str) -> nn.Module | None:
    """Find the nearest module around the block that is called with the timestep second."""
    names = path.split(".")
    for depth in range(len(names) - 1, -1, -1):
        module = model.get_submodule(".".join(names[:depth]))
        parameters = list(inspect.signature(module.forward).parameters)
        if len(parameters) > 1 and parameters[1] in TIME_ARGUMENTS:
            return module
    return None


def _forward_problem(block: Block) -> str | None:
    """Compare a copy of the block with one that has TD-LN, at one timestep and class."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            for training in (False, True):
                wanted, found = _trial_outputs(block, training)
                if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-4, atol=1e-4):
                    return "computes something else than adaLN-Zero, attention and MLP"
    except Exception as error:  # another project's layer may raise anything
        first_line = str(error).partition("\n")[0]
        return f"could not be tried on [2, 4, D]: {type(error).__name__}: {first_line}"
    return None


def _trial_outputs(block: Block, training: bool) -> tuple[Tensor, Tensor]:
    """Run a copy as it is, and with norms fixed at the scale and shift that it had in the first run."""
    trial = type(block)(block.path, copy.deepcopy(block.module).to("cpu", torch.float32).train(training))
    for parameter in trial.linear().parameters():  # may start at zero, where every modulation is alike
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    x = torch.randn(2, 4, trial.norms()[0].normalized_shape[0])
    seen: list[Tensor] = []
    handle = trial.linear().register_forward_hook(lambda module, args, out: seen.append(out[0]))
    state = torch.get_rng_state()
    wanted = trial.call(x)
    handle.remove()
    six = seen[0].unflatten(0, (6, -1))
    norms = [
        _fixed_norm(old, scale, shift)
        for old, shift, scale in zip(trial.norms(), six[[0, 3]], six[[1, 4]], strict=True)
    ]
    _swap(trial, norms)
    torch.set_rng_state(state)
    return wanted, trial.call(x)


def _fixed_norm(norm: nn.LayerNorm, scale: Tensor, shift: Tensor) -> FittedTDLayerNorm:
    """Make the modulated norm at one scale and shift ``[D]``."""
    new: Any = FittedTDLayerNorm(norm.normalized_shape, eps=norm.eps)
    factor, summand = _effective_affine(norm, scale, shift)
    for parameter, value in ((new.p1, factor), (new.p2, factor), (new.p3, summand), (new.p4, summand)):
        parameter.copy_(value)
    return new


def _effective_affine(norm: nn.LayerNorm, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the factor and summand ``[..., D]`` of ``norm(x) (1 + scale) + shift``, its weight and bias included."""
    factor, summand = 1 + scale, shift
    if norm.bias is not None:
        summand = summand + factor * norm.bias
    return (factor if norm.weight is None else factor * norm.weight), summand


def _swap(block: Block, norms: Sequence[FittedTDLayerNorm]) -> list[Change]:
    """Put the fitted norms and the rest of the modulation into the block."""
    linear = block.linear()
    replaced = zip((*block.norms(), linear), (*norms, _alpha_linear(linear)), strict=True)
    changes: list[Change] = [Replacement(block.module, old, new) for old, new in replaced]
    return [*changes, ClassChange(block.path, block.module, block.forward)]


def _alpha_linear(linear: nn.Linear) -> nn.Linear:
    """Keep the rows of the two gates: the third and the last of shift, scale, gate, shift, scale, gate."""
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


# Tables of scale and shift, and TD-LN fitted to them.


class Table(NamedTuple):
    """A scale or shift: mean, variance and extremes over classes, ``[T, D]`` float64 each."""

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor


@torch.no_grad()
def _tabulate(block: Block, condition: Conditioning, timesteps: Tensor, labels: Tensor) -> list[tuple[Table, Table]]:
    """Compute scale and shift of the block's two norms, the effect of the norms' own weights included."""
    linear = block.linear()
    first, second = block.norms()
    parts = []
    for some in timesteps.split(max(1, ROWS_AT_ONCE // len(labels))):
        c = condition(some.repeat_interleave(len(labels)), labels.repeat(len(some)))
        six = F.linear(F.silu(c), linear.weight, linear.bias).double()
        shift1, scale1, _, shift2, scale2, _ = six.view(len(some), len(labels), 6, -1).unbind(2)  # [t, classes, D]
        vectors = (*_effective_affine(first, scale1, shift1), *_effective_affine(second, scale2, shift2))
        parts.append(torch.stack([_over_classes(vector) for vector in vectors]))  # [4 vectors, 4, t, D]
    first_scale, first_shift, second_scale, second_shift = (Table(*table) for table in torch.cat(parts, dim=2))
    return [(first_scale, first_shift), (second_scale, second_shift)]


def _over_classes(values: Tensor) -> Tensor:
    """``[t, classes, D]`` -> ``[4, t, D]``, the columns of a :class:`Table`."""
    return torch.stack((values.mean(1), values.var(1, correction=0), values.amin(1), values.amax(1)))


def _fit_norms(
    report: AdaNormReport,
    block: Block,
    tables: list[tuple[Table, Table]],
    timesteps: Tensor,
    gate: str,
    time_range: tuple[float, float],
) -> list[FittedTDLayerNorm]:
    """Fit both norms of the block; the report gets how well they fit."""
    t, weight = _scaled(timesteps.double(), time_range), block.linear().weight
    norms = []
    for norm, name, vectors in zip(block.norms(), block.norm_names, tables, strict=True):
        new: Any = FittedTDLayerNorm(norm.normalized_shape, eps=norm.eps, gate=gate)
        new.time_range = time_range
        # float32 at least: a steep gate multiplies what rounding does to its parameters.
        new.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        places = (("scale", "p1", "p2"), ("shift", "p3", "p4"))
        for (vector, p, q), table in zip(places, vectors, strict=True):
            parameters = [getattr(new, n) for n in (p, q, f"{vector}_gate_weight", f"{vector}_gate_offset")]
            fitted = _store(fit_gated(t, table.mean, gate), parameters)
            report.fits.append(_norm_fit(f"{block.path}.{name}", vector, table, fitted(t)))
        norms.append(new.train(norm.training).requires_grad_(weight.requires_grad))
    return norms


@torch.no_grad()
def _store(fitted: Gated, parameters: list[nn.Parameter]) -> Gated:
    """Round the fit to the parameters, and return it as they hold it."""
    values = (fitted.p, fitted.q, fitted.weight, fitted.offset)
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
    return Gated(*(parameter.double() for parameter in parameters))


def _norm_fit(path: str, vector: str, table: Table, fitted: Tensor) -> NormFit:
    """Measure how far ``fitted [T, D]`` is from the table."""
    total = (table.mean - table.mean.mean(0)).square() + table.variance
    left = (table.mean - fitted).square() + table.variance
    between, variance = table.variance.sum(), total.sum()

    def share(part: Tensor) -> float:
        return (part / variance).item() if variance > 0 else 0.0

    largest = torch.maximum(table.high - fitted, fitted - table.low).max()
    return NormFit(path, vector, share(left.sum()), share(between), left.mean().sqrt().item(), largest.item())
