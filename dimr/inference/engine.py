"""The inference engine: packed weights and a forward without copies between operators, replayed as a CUDA graph.

Between operators nothing is copied, cast or concatenated, and every addition is fused into a kernel that reads its
operands anyway (``packed``). On a GPU the host launches one CUDA graph per call (``graphs``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels.environment import implementation_of

from ..model.config import DiMRConfig
from ..model.modified import PlainView, plain_view
from ..model.network import DiMR, as_timestep, check_class_labels, check_image
from .graphs import CudaRecorder, GraphCache
from .packed import Kept, PackedBranch, PackedConvNeXtBranch, PackedTransformerBranch, Packer

logger = logging.getLogger(__name__)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_GRAPHS = 8
CHANGES_SHOWN = 3


def optimize_for_inference(
    model: DiMR, dtype: torch.dtype = torch.bfloat16, cuda_graph: bool = True, max_graphs: int = MAX_GRAPHS
) -> InferenceEngine:
    """Make an engine that computes the same as ``model``, without gradients, with fewer launches and less traffic.

    The engine copies the weights: the model is not changed, later changes to it do not reach the engine, and until the
    model is deleted both copies take memory (four bytes per parameter for the model, two for the engine).

    Adapters (peft) and parametrizations are merged into the copy. A part with another modified layer in it, such as one
    with forward hooks, a forward of its own or quantised weights, is not copied: the engine calls the model's own, in
    the model's dtype, and records no CUDA graph. :meth:`InferenceEngine.report` names both.

    Args:
        model: the model, on the device where the engine will run.
        dtype: dtype of weights and activations: bfloat16, float16 or float32. Norms keep float32 parameters and
            statistics; matrix products and attention accumulate in float32.
        cuda_graph: record a CUDA graph for each batch size at its first call. Without a GPU, or if recording fails,
            kernels are launched one by one; :meth:`InferenceEngine.report` has the reason.
        max_graphs: number of batch sizes whose graphs are kept.

    Raises:
        TypeError: ``model`` is not a :class:`~dimr.DiMR`.
        ValueError: an unsupported dtype, ``max_graphs`` below 1, a model with one of the paper's ablations, or one
            whose own call, or that of a branch, was modified, which the engine makes no use of.

    Example:
        >>> import dimr
        >>> fast = optimize_for_inference(dimr.create_model("dimr-tiny-3r"), dtype=torch.float32)
        >>> [out.shape[-1] for out in fast(torch.randn(2, 3, 16, 16), 500.0, torch.tensor([0, 3]))]
        [4, 8, 16]
    """
    if not isinstance(model, DiMR):
        inside = "; pass its get_base_model()" if callable(getattr(model, "get_base_model", None)) else ""
        raise TypeError(f"model must be a DiMR, got {type(model).__name__}{inside}")
    if model.config.ablations:
        raise ValueError(
            f"the engine packs the paper's own architecture, this model has {model.config.describe_ablations()}; "
            f"sample with the model itself"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype}")
    if isinstance(max_graphs, bool) or not isinstance(max_graphs, int) or max_graphs < 1:
        raise ValueError(f"max_graphs must be an integer of at least 1, got {max_graphs!r}")
    with torch.inference_mode(False), torch.no_grad():
        engine = InferenceEngine(model, dtype, cuda_graph, max_graphs)
    for part, reason in engine.report()["not_fused"].items():
        logger.info("%s: %s", part, reason)
    for part, what in engine.report()["merged"].items():
        logger.info("%s %s; it was merged", part, what)
    return engine


class InferenceEngine(nn.Module):
    """The result of :func:`optimize_for_inference`. Call it like the model: ``engine(x, timestep, class_labels)``.

    Calls from several threads or streams are serialised. Results belong to the caller. An engine keeps its device and
    dtype, and has no parameters to train, save or move.
    """

    def __init__(self, model: DiMR, dtype: torch.dtype, cuda_graph: bool, max_graphs: int) -> None:
        super().__init__()
        self.config: DiMRConfig = model.config
        self.device = model.device
        self.dtype = dtype
        view, parts = plain_view(model), list(_parts(self.config))
        self._kept = {part: changes for part in parts if (changes := view.modifications(part))}
        self._merged = {name: what for name, what in view.merged.items() if not _is_inside(name, self._kept)}
        _refuse_modified_calls(view, parts)
        pack = Packer(dtype)
        kept = {part: Kept(model.get_submodule(part), model.dtype, dtype) for part in self._kept}
        branches, count = view.model.branches, self.config.num_branches
        self._branches: list[PackedBranch] = [
            (PackedConvNeXtBranch if i else PackedTransformerBranch)(
                branch,
                pack,
                self.config.resolutions[i],
                branches[i + 1] if i + 1 < count else None,
                {part.partition(f"branches.{i}.")[2]: call for part, call in kept.items()},
                f"branches.{i + 1}.upsample" not in kept,
            )
            for i, branch in enumerate(branches)
        ]
        self._weight_bytes = pack.bytes
        self._graph_wanted = cuda_graph
        self._graphs: GraphCache | None = None
        if cuda_graph and self.device.type == "cuda" and not self._kept:
            self._graphs = GraphCache(self._compute, CudaRecorder(self.device), max_graphs)
        self.eval()

    def forward(self, x: Tensor, timestep: Tensor | float, class_labels: Tensor) -> tuple[Tensor, ...]:
        """Predict the noise, lowest resolution first; arguments, results and errors are those of :class:`~dimr.DiMR`.

        ``x`` has the engine's dtype. Autocast has no effect, and nothing is recorded for autograd.
        """
        check_image(self.config, x, self.dtype, self.device)
        check_class_labels(self.config, class_labels, x.shape[0], self.device)
        timestep = as_timestep(timestep, x.shape[0], self.device)
        with torch.no_grad(), _no_autocast(self.device):
            x = x.to(self.dtype)
            if x.shape[0] == 0:
                return tuple(x.new_empty(0, self.config.in_channels, s, s) for s in self.config.resolutions)
            if self._graphs is None:
                return tuple(out.contiguous() for out in self._compute(x, timestep, class_labels))
            return self._graphs(dk.current_backend(), x, timestep, class_labels.long())

    def _compute(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> tuple[Tensor, ...]:
        """Compute predictions in channels-last memory, which the caller makes contiguous in their only copy."""
        t = timestep / 500 - 1  # the norms' time, in (-1, 1]
        x = x.contiguous()
        predictions: list[Tensor] = []
        source: Any = class_labels
        for branch in self._branches:
            prediction, source = branch(x, t, source)
            predictions.append(prediction)
        return tuple(predictions)

    def free_graphs(self) -> None:
        """Free the memory of every CUDA graph. The next call of each batch size records a new one."""
        if self._graphs is not None:
            self._graphs.free()

    def memory(self) -> dict[str, Any]:
        """Count bytes: ``weights``; ``graphs``, by the shapes of their inputs; ``features_per_sample``, by branch."""
        size = torch.empty((), dtype=self.dtype).element_size()
        return {
            "weights": self._weight_bytes,
            "graphs": {} if self._graphs is None else self._graphs.sizes(),
            "features_per_sample": [size * b.tokens * b.dim * (len(b.blocks) + 1) for b in self._branches],
        }

    def report(self) -> dict[str, Any]:
        """Describe the engine in plain values, fit for JSON.

        ``packed``: how the weights are packed. ``operators``: the implementation of each operator. ``not_fused``: the
        parts that do not run in their fastest form, each with the reason, among them the parts that are called as they
        are; empty if there are none. ``merged``: layers whose adapters or parametrizations were merged.
        ``cuda_graph``: "on", or the reason why not. ``memory``: see :meth:`memory`.
        """
        operators = {name: implementation_of(name, self.device) for name in self._operators()}
        not_fused = {name: f"{chosen}, because {reason}" for name, (chosen, reason) in operators.items() if reason}
        for part, changes in self._kept.items():
            not_fused[part] = f"called as it is, because {_listed(changes)}"
        if self.graph_status != "on":
            not_fused["CUDA graph"] = self.graph_status
        head_dim = self.config.dims[0] // self.config.num_heads
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "packed": {
                "head_dim": {
                    "model": head_dim,
                    "engine": head_dim if self.dtype == torch.float32 else dk.padded_head_dim(head_dim),
                },
                "slots": [blocks + 1 for blocks in self.config.blocks],
                "concatenations": 0,
            },
            "operators": {name: chosen for name, (chosen, _) in operators.items()},
            "not_fused": not_fused,
            "merged": dict(self._merged),
            "cuda_graph": self.graph_status,
            "memory": self.memory(),
        }

    def _operators(self) -> list[str]:
        names = ["attention", "geglu_linear", "td_layer_norm"]
        if self.config.norm == "td_rms":
            names.append("td_rms_norm")
        if self.config.num_branches > 1:
            names += ["depthwise_conv2d", "pixel_shuffle_td_norm_add"]
        return names

    @property
    def graph_status(self) -> str:
        """ "on", or the reason why there are no CUDA graphs."""
        if not self._graph_wanted:
            return "cuda_graph=False was asked for"
        if self._kept:
            return f"parts of the model are called as they are ({', '.join(list(self._kept)[:CHANGES_SHOWN])})"
        if self._graphs is None:
            return f"CUDA graphs need a GPU, the model is on {self.device}"
        return self._graphs.problem or "on"

    def _apply(self, fn: Any, recurse: bool = True) -> NoReturn:
        raise TypeError("an engine keeps the device and dtype it was made with; make another one from the model")

    def extra_repr(self) -> str:
        return f"{self.config}, dtype={self.dtype}, device={self.device}, CUDA graphs: {self.graph_status}"


def _parts(config: DiMRConfig) -> Iterator[str]:
    """Yield the paths of the parts that the engine packs or, where they are modified, calls as they are."""
    for i, blocks in enumerate(config.blocks):
        names = ["embed", "upsample" if i else "class_embedding"]
        names += [f"blocks.{j}" for j in range(blocks)] + [f"skips.{j}" for j in range(blocks // 2)] + ["head"]
        yield from (f"branches.{i}.{name}" for name in names)


def _is_inside(path: str, parts: Iterable[str]) -> bool:
    return any(f"{path}.".startswith(f"{part}.") for part in parts)


def _refuse_modified_calls(view: PlainView, parts: Iterable[str]) -> None:
    """Raise for a modified module that stands around the parts: the engine does its work without calling it."""
    around = {path: what for path, what in view.modified.items() if not _is_inside(path, parts)}
    if around:
        raise ValueError(f"the engine cannot take over {_listed(around)}; undo that, or sample with the model itself")


def _listed(changes: Mapping[str, str]) -> str:
    described = [f"{path or 'the model'} {what}" for path, what in changes.items()]
    rest = f", and {len(described) - CHANGES_SHOWN} more" if len(described) > CHANGES_SHOWN else ""
    return "; ".join(described[:CHANGES_SHOWN]) + rest


def _no_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
