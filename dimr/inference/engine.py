"""The engine: a model's weights, packed, and its forward as a list of launches.

Between two operators nothing is copied, cast or concatenated (``features``), every addition rides in a kernel that
reads the numbers anyway (``packing``, ``blocks``), and where CUDA graphs can be had the host launches one of them.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels.environment import implementation_of

from ..model.config import DiMRConfig
from ..model.network import DiMR, as_timestep, check_class_labels, check_image
from .graphs import CudaRecorder, GraphCache
from .packed import PackedBranch, PackedConvNeXtBranch, PackedTransformerBranch, Packer

logger = logging.getLogger(__name__)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_GRAPHS = 8


def optimize_for_inference(
    model: DiMR, dtype: torch.dtype = torch.bfloat16, cuda_graph: bool = True, max_graphs: int = MAX_GRAPHS
) -> InferenceEngine:
    """The same function as ``model`` without a gradient, in few launches that move few bytes.

    The engine holds copies: the model is left as it is, later changes to it do not reach the engine, and until the
    model is deleted the weights are there twice (four bytes a parameter, and the engine's two).

    Args:
        model: on the device where the engine is to run.
        dtype: of weights and activations; bfloat16, float16 or float32. Norms keep float32 parameters and statistics,
            products and attention sum in float32.
        cuda_graph: record a CUDA graph for each batch size when it first comes. Without a GPU, or where recording
            fails, calls are launched one by one; :meth:`InferenceEngine.report` says why.
        max_graphs: batch sizes whose graphs are kept at a time.

    Raises:
        TypeError: ``model`` is no :class:`~dimr.model.network.DiMR`.
        ValueError: another dtype, ``max_graphs`` below 1, or a model with one of the paper's ablations.

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
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}; got {dtype}")
    if isinstance(max_graphs, bool) or not isinstance(max_graphs, int) or max_graphs < 1:
        raise ValueError(f"max_graphs must be an integer of at least 1, got {max_graphs!r}")
    with torch.inference_mode(False), torch.no_grad():
        engine = InferenceEngine(model, dtype, cuda_graph, max_graphs)
    for part, reason in engine.report()["not_fused"].items():
        logger.info("%s: %s", part, reason)
    return engine


class InferenceEngine(nn.Module):
    """What :func:`optimize_for_inference` returns. Call it as the model: ``engine(x, timestep, class_labels)``.

    Calls from several threads or streams take turns. Results are the caller's own. An engine stays on its device and
    keeps its dtype, and has no parameters to train, save or move.
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
        """Noise predictions, lowest resolution first; arguments, results and errors as for :class:`~dimr.DiMR`.

        ``x`` has the engine's dtype. Autocast does not act inside, and nothing is recorded for autograd.
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
        """Predictions with channels last in memory: the caller makes them contiguous, the one copy of an output."""
        t = timestep / 500 - 1  # what the norms see, in (-1, 1]
        x = x.contiguous()
        predictions: list[Tensor] = []
        source: Any = class_labels
        for branch in self._branches:
            prediction, source = branch(x, t, source)
            predictions.append(prediction)
        return tuple(predictions)

    def free_graphs(self) -> None:
        """Give back the memory of every CUDA graph; the next call of each batch size records its own again."""
        if self._graphs is not None:
            self._graphs.free()

    def memory(self) -> dict[str, Any]:
        """Bytes: ``weights``; ``graphs``, by the shapes of their inputs; ``features_per_sample``, by branch."""
        size = torch.empty((), dtype=self.dtype).element_size()
        return {
            "weights": self._weight_bytes,
            "graphs": {} if self._graphs is None else self._graphs.sizes(),
            "features_per_sample": [size * b.tokens * b.dim * (len(b.blocks) + 1) for b in self._branches],
        }

    def report(self) -> dict[str, Any]:
        """What the engine is made of, as plain values (see :func:`dimr.inference.engine.describe`)."""
        return describe(self)

    @property
    def graph_status(self) -> str:
        """ "on", or why there are no CUDA graphs."""
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


# What an engine is made of, and what of it could not be had here.


def describe(engine: InferenceEngine) -> dict[str, Any]:
    """Plain values, fit for JSON.

    ``packed``: what was done to the weights. ``operators``: the implementation that each takes in this place.
    ``not_fused``: parts that run otherwise than they could, each with its reason; empty where nothing is missing.
    ``cuda_graph``: "on" or the reason why not. ``memory``: see :meth:`InferenceEngine.memory`.
    """
    operators = {name: implementation_of(name, engine.device) for name in _operators(engine)}
    missing = {name: f"{chosen}, because {why}" for name, (chosen, why) in operators.items() if why}
    if engine.graph_status != "on":
        missing["CUDA graph"] = engine.graph_status
    return {
        "dtype": str(engine.dtype).removeprefix("torch."),
        "device": str(engine.device),
        "packed": _packed(engine),
        "operators": {name: chosen for name, (chosen, _) in operators.items()},
        "not_fused": missing,
        "cuda_graph": engine.graph_status,
        "memory": engine.memory(),
    }


def _operators(engine: InferenceEngine) -> list[str]:
    names = ["attention", "geglu_linear", "td_layer_norm"]
    if engine.config.norm == "td_rms":
        names.append("td_rms_norm")
    if engine.config.num_branches > 1:
        names += ["depthwise_conv2d", "pixel_shuffle_td_norm_add"]
    return names


def _packed(engine: InferenceEngine) -> dict[str, Any]:
    config = engine.config
    head_dim = config.dims[0] // config.num_heads
    padded = head_dim if engine.dtype == torch.float32 else dk.padded_head_dim(head_dim)
    return {
        "head_dim": {"model": head_dim, "engine": padded},
        "slots": [blocks + 1 for blocks in config.blocks],
        "concatenations": 0,
    }
