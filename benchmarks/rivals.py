"""Other implementations of the same work, and the reasons that one cannot run here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from dimr_kernels.dispatch import unavailable_reason

from .workload import Inputs, Rival, Workload, random

# torch.compile with its own CUDA graphs would copy every input into the graph's memory and, in the host's time, show a
# replay instead of launches; the time of the kernels comes from a graph of ours for every implementation alike.
COMPILE_MODES = {"compiled": "default", "max-autotune": "max-autotune-no-cudagraphs"}

LAYER_NORMS = ("td_layer_norm", "td_layer_norm_residual", "shuffle_norm_add")


class Unavailable(Exception):
    """This implementation cannot run here; the message says why."""


def resolve(workload: Workload, implementation: str, device: torch.device, dtype: torch.dtype) -> Rival:
    """Return what to call for an implementation, or raise :class:`Unavailable`."""
    if implementation == "fused":
        return _fused(workload, device, dtype)
    if implementation == "eager":
        return Rival(workload.function)
    if implementation in COMPILE_MODES:
        note = variance_note(workload.width) if device.type == "cpu" and workload.operator in LAYER_NORMS else ""
        return Rival(compiled(workload.function, COMPILE_MODES[implementation]), note=note)
    return workload.rivals[implementation]


def _fused(workload: Workload, device: torch.device, dtype: torch.dtype) -> Rival:
    form = workload.fused
    if form != "auto" and device.type == "cpu":
        form = "cpp"
    problem = None if form == "auto" else untimed_reason(form, device, dtype)
    if problem is not None:
        raise Unavailable(f"no fused form here: {problem}")
    return Rival(workload.function, backend=form)


def untimed_reason(fused: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Explain why a fused form cannot run here, or only in Triton's interpreter; None if it can."""
    problem = unavailable_reason(fused, device, dtype)
    if problem is None and fused == "triton" and device.type == "cpu":
        return "Triton's interpreter is not worth timing"
    return problem


def compiled(function: Callable[..., Any], mode: str) -> Callable[..., Any]:
    """Compiled anew, for the one shape it will see."""
    torch._dynamo.reset()
    # A compiled backward may write over what its forward kept, and then cannot run again on the same graph.
    torch._functorch.config.donated_buffer = False
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)


def variance_note(width: int) -> str:
    """Name the algorithm that Inductor's C++ takes for the variance of so many elements."""
    from torch._inductor import config

    widest = getattr(config.cpp, "use_two_step_variance_threshold", 1024)
    algorithm = "in two passes" if width <= widest else "by Welford's algorithm"
    return f"Inductor computes the variance {algorithm}: two passes up to {widest:,} elements, Welford above"


def missing_reason(module: str, package: str, device: torch.device) -> str | None:
    if find_spec(module) is None:
        return f"{package} is not installed (pip install {package})"
    return None if device.type == "cuda" else f"{package} needs a GPU"


def _installed_rival(module: str, package: str, device: torch.device, **fields: Any) -> Rival:
    problem = missing_reason(module, package, device)
    return Rival(unavailable_reason=lambda direction, inputs: problem, **fields)


def liger_geglu(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Rival:
    """``shape [..., D]`` is that of the gate and of the value, which Liger-Kernel takes as two tensors."""

    def function(gate: Tensor, value: Tensor) -> Tensor:
        from liger_kernel.ops.geglu import LigerGELUMulFunction

        return LigerGELUMulFunction.apply(gate, value)

    return _installed_rival(
        "liger_kernel",
        "liger-kernel",
        device,
        function=function,
        make_inputs=lambda: {name: random(*shape, dtype=dtype, device=device) for name in ("gate", "value")},
        gradients={"backward": ("gate", "value")},
        batched=("gate", "value"),
        definition=lambda gate, value: F.gelu(gate, approximate="tanh") * value,
        note="approximate='tanh', the only one it has; gate and value in two tensors; its backward writes over them",
    )


def norm_rivals(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, residual: bool
) -> dict[str, Rival]:
    """Norms without a timestep, ``kind`` "layer_norm" or "rms_norm", over ``shape [..., D]``: less work than ours.

    torch's own is there for its host time; Liger-Kernel and quack come nearest among fused norms.
    """
    rms = kind == "rms_norm"
    D = shape[-1]

    sizes = {"x": shape, "residual": shape, "weight": (D,), "bias": (D,)}
    given = {"x": True, "residual": residual, "weight": True, "bias": not rms}
    names = tuple(name for name in sizes if given[name])

    def torch_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Any:
        total = x if residual is None else x + residual
        y = F.rms_norm(total, (D,), weight, 1e-6) if rms else F.layer_norm(total, (D,), weight, bias, 1e-6)
        return y if residual is None else (y, total)

    fields: dict[str, Any] = {
        "make_inputs": lambda: {name: random(*sizes[name], dtype=dtype, device=device) for name in names},
        "gradients": {"backward": names},
        "batched": ("x", "residual"),
        "definition": torch_norm,
        "note": "without a timestep",
    }
    rivals = {kind: Rival(torch_norm, **fields)}
    if rms:
        fields["note"] += "; its weight in x's dtype"
        rivals["liger"] = _installed_rival("liger_kernel", "liger-kernel", device, function=_liger_rms_norm, **fields)
        rivals["quack"] = _installed_rival("quack", "quack-kernels", device, function=_quack_rms_norm, **fields)
    elif not residual:
        rivals["liger"] = _installed_rival("liger_kernel", "liger-kernel", device, function=_liger_layer_norm, **fields)
    return rivals


def _liger_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return LigerLayerNormFunction.apply(x, weight, bias, 1e-6)


def _liger_rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Any:
    # Arguments: eps, offset, casting mode, whether the backward may write over the incoming gradient.
    options = 1e-6, 0.0, "llama", False
    if residual is None:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        return LigerRMSNormFunction.apply(x, weight, *options)
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction

    return LigerFusedAddRMSNormFunction.apply(x, residual, weight, *options)


def _quack_rms_norm(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Any:
    from quack import rmsnorm

    return rmsnorm(x, weight, residual=residual, eps=1e-6, prenorm=residual is not None)


def depthwise_rivals(B: int, S: int, C: int, K: int, dtype: torch.dtype, device: torch.device) -> dict[str, Rival]:
    """cuDNN and ATen's own depthwise kernels, each in both memory formats, and onnxruntime's on a CPU."""
    rivals = {
        f"{library} {layout}": _convolution((B, S, C, K), library, layout, dtype, device)
        for library in ("cudnn", "aten")
        for layout in ("nhwc", "nchw")
    }
    return rivals | {"onnxruntime nchw": _onnxruntime_convolution((B, S, C, K), dtype, device)}


def _onnxruntime_convolution(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> Rival:
    B, S, C, K = shape

    def unavailable_reason(direction: str, inputs: Inputs) -> str | None:
        for name in ("onnxruntime", "onnx"):
            if find_spec(name) is None:
                return f"{name} is not installed (pip install onnx onnxruntime)"
        if device.type != "cpu" or dtype != torch.float32 or direction != "forward":
            return "onnxruntime is measured on a CPU, in float32, forward"
        return None

    return Rival(
        _onnxruntime_convolve,
        make_inputs=lambda: {
            "x": random(B, C, S, S, dtype=dtype, device=device),
            "weight": random(C, 1, K, K, dtype=dtype, device=device),
            "bias": random(C, dtype=dtype, device=device),
        },
        batched=("x",),
        definition=convolve,
        unavailable_reason=unavailable_reason,
    )


def _onnxruntime_convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    session = _onnxruntime_session(tuple(weight.shape), torch.get_num_threads())
    (out,) = session.run(None, {"x": x.numpy(), "weight": weight.numpy(), "bias": bias.numpy()})
    return torch.from_numpy(out)


@functools.cache
def _onnxruntime_session(weight: tuple[int, ...], threads: int) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper

    C, _, K, _ = weight
    conv = helper.make_node("Conv", ["x", "weight", "bias"], ["y"], group=C, kernel_shape=[K, K], pads=[K // 2] * 4)
    names = {"x": [None, C, None, None], "weight": list(weight), "bias": [C]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in names.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, C, None, None])]
    graph = helper.make_graph([conv], "depthwise", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _convolution(
    shape: tuple[int, int, int, int], library: str, layout: str, dtype: torch.dtype, device: torch.device
) -> Rival:
    B, S, C, K = shape
    memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format

    def make_inputs() -> Inputs:
        x = random(B, C, S, S, dtype=dtype, device=device).to(memory_format=memory_format)
        weight = random(C, 1, K, K, dtype=dtype, device=device)
        return {"x": x, "weight": weight, "bias": random(C, dtype=dtype, device=device)}

    return Rival(
        cudnn_convolve if (library, layout) == ("cudnn", "nchw") else convolve,
        make_inputs=make_inputs,
        batched=("x",),
        definition=convolve,
        # cuDNN tries its algorithms and keeps the fastest.
        around=functools.partial(torch.backends.cudnn.flags, enabled=library == "cudnn", benchmark=True),
        unavailable_reason=_cudnn_problem if library == "cudnn" else lambda direction, inputs: None,
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x [B, C, H, W]`` in either memory format; torch picks the library by it and by the settings around."""
    return F.conv2d(x, weight, bias, padding=weight.shape[3] // 2, groups=x.shape[1])


def cudnn_convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same by cuDNN, also where torch would take another library: it does for most contiguous inputs."""
    padding = [weight.shape[3] // 2] * 2
    out = torch.ops.aten.cudnn_convolution(
        x, weight, padding, stride=[1, 1], dilation=[1, 1], groups=x.shape[1], benchmark=True, deterministic=False,
        allow_tf32=True,
    )  # fmt: skip
    return out.add_(bias[:, None, None])


def _cudnn_problem(direction: str, inputs: Inputs) -> str | None:
    x, weight, bias = inputs["x"], inputs["weight"], inputs["bias"]
    if x.device.type != "cuda":
        return "cuDNN needs CUDA tensors"
    if direction == "forward":
        return None
    padding = [weight.shape[3] // 2] * 2
    taken = torch._C._select_conv_backend(x, weight, bias, [1, 1], padding, [1, 1], False, [0, 0], x.shape[1])
    if "Cudnn" in taken.name:
        return None
    return f"with cuDNN on, torch takes {taken.name} for this gradient and has no other way to cuDNN's"
