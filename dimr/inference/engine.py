"""The inference engine: packed weights and a forward without copies between operators, replayed as a CUDA graph.

Between operators nothing is copied, cast or concatenated, and every addition is fused into a kernel that reads its
operands anyway (``packed``). On a GPU the host launches one CUDA graph per call (``graphs``).
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels.checks import is_plain_tensor
from dimr_kernels.environment import implementation_of

from ..model.config import DiMRConfig
from ..model.network import DiMR, as_timestep, check_class_labels, check_image, without_weights
from .graphs import CudaRecorder, GraphCache
from .packed import PackedBranch, PackedConvNeXtBranch, PackedTransformerBranch, Packer

logger = logging.getLogger(__name__)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_GRAPHS = 8


def optimize_for_inference(
    model: DiMR, dtype: torch.dtype = torch.bfloat16, cuda_graph: bool = True, max_graphs: int = MAX_GRAPHS
) -> InferenceEngine:
    """Make an engine that computes the same as ``model``, without gradients, with fewer launches and less traffic.

    The engine copies the weights: the model is not changed, later changes to it do not reach the engine, and until the
    model is deleted both copies take memory (four bytes per parameter for the model, two for the engine).

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
            whose layers were replaced (adapters, quantised weights).

    Example:
        >>> import dimr
        >>> fast = optimize_for_inference(dimr.create_model("dimr-tiny-3r"), dtype=torch.float32)
        >>> [out.shape[-1] for out in fast(torch.randn(2, 3, 16, 16), 500.0, torch.tensor([0, 3]))]
        [4, 8, 16]
    """
    if not isinstance(model, DiMR):
        raise TypeError(f"model must be a DiMR, got {type(model).__name__}")
    if model.config.ablations:
        raise ValueError(
            f"the engine packs the paper's own architecture, this model has {model.config.describe_ablations()}; "
            f"sample with the model itself"
        )
    _check_layers(model)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype}")
    if isinstance(max_graphs, bool) or not isinstance(max_graphs, int) or max_graphs < 1:
        raise ValueError(f"max_graphs must be an integer of at least 1, got {max_graphs!r}")
    with torch.inference_mode(False), torch.no_grad():
        engine = InferenceEngine(model, dtype, cuda_graph, max_graphs)
    for part, reason in engine.report()["not_fused"].items():
        logger.info("%s: %s", part, reason)
    return engine


def _check_layers(model: DiMR) -> None:
    """Raise a ``ValueError`` if a layer computes something else than the weights that the engine would copy."""
    advice = "merge adapters into the weights first (peft: merge_and_unload()), or sample with the model itself"
    for name, wanted in without_weights(model.config).named_modules():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise ValueError(f"the engine packs the model's own layers, {name} is missing: {advice}") from None
        # A parametrized layer is a subclass with the same forward, whose weight is what it computes with.
        replaced = not isinstance(module, type(wanted)) or type(module).forward is not type(wanted).forward
        weights = [type(p) for p in module.parameters(recurse=False) if not is_plain_tensor(p)]
        if replaced or weights:
            found = f"{name} is a {type(module).__name__}" if replaced else f"{name} has a {weights[0].__name__}"
            raise ValueError(f"the engine packs the model's own layers, {found}: {advice}")


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
        pack = Packer(dtype)
        kinds = [PackedTransformerBranch] + [PackedConvNeXtBranch] * (self.config.num_branches - 1)
        above = [*model.branches[1:], None]
        self._branches: list[PackedBranch] = [
            kind(branch, pack, resolution, upper)
            for kind, branch, resolution, upper in zip(
                kinds, model.branches, self.config.resolutions, above, strict=True
            )
        ]
        self._weight_bytes = pack.bytes
        self._graph_wanted = cuda_graph
        self._graphs: GraphCache | None = None
        if cuda_graph and self.device.type == "cuda":
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
        parts that do not run in their fastest form, each with the reason; empty if there are none. ``cuda_graph``:
        "on", or the reason why not. ``memory``: see :meth:`memory`.
        """
        operators = {name: implementation_of(name, self.device) for name in self._operators()}
        not_fused = {name: f"{chosen}, because {reason}" for name, (chosen, reason) in operators.items() if reason}
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
        if self._graphs is None:
            return f"CUDA graphs need a GPU, the model is on {self.device}"
        return self._graphs.problem or "on"

    def _apply(self, fn: Any, recurse: bool = True) -> NoReturn:
        raise TypeError("an engine keeps the device and dtype it was made with; make another one from the model")

    def extra_repr(self) -> str:
        return f"{self.config}, dtype={self.dtype}, device={self.device}, CUDA graphs: {self.graph_status}"


def _no_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
