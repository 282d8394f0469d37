"""Rivals do exactly the work that they are timed for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dimr_kernels as dk
from benchmarks import rivals
from benchmarks.rivals import Unavailable, depthwise_rivals, liger_geglu, norm_rivals, resolve
from benchmarks.test_attention import Heads
from benchmarks.test_attention import workload as attention
from benchmarks.test_depthwise_conv import Convolution
from benchmarks.test_depthwise_conv import workload as depthwise_conv
from benchmarks.workload import bind
from dimr_kernels.dispatch import extension_status

from ..support.requirements import needs_inductor
from .harness import CPU, scaling

SHAPE = Convolution(kernel_size=7, batch=2, side=6, width=8)


class SeenGradients(TorchDispatchMode):
    """Record which gradients torch's convolution computes: of the input, the weight, the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.masks.append(list(args[-1]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["aten nhwc", "aten nchw"])
def test_convolutions_equal_ours(name):
    workload = depthwise_conv(SHAPE, torch.float32, CPU)
    rival = workload.rivals[name]
    inputs = rival.make_inputs()
    x = inputs["x"]
    nhwc = name == "aten nhwc"
    assert x.is_contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
    ours = inputs | {"x": x.permute(0, 2, 3, 1).contiguous()}
    masks = {"input_gradient": [True, False, False], "weight_gradient": [False, True, True]}
    for direction, wanted in workload.directions.items():
        torch.manual_seed(0)
        with rival.around(), SeenGradients() as seen:
            assert torch.backends.cudnn.enabled is False
            found = bind(rival.function, inputs, wanted.gradients)()
        assert seen.masks == ([masks[direction]] if wanted.gradients else [])
        if wanted.gradients:
            continue
        with dk.use_backend("eager"):
            expected = workload.function(**ours)
        torch.testing.assert_close(found[0].permute(0, 2, 3, 1), expected)


def test_gradients_of_convolutions_equal_ours():
    """Compare the gradients for the same incoming gradient."""
    workload = depthwise_conv(Convolution(kernel_size=3, batch=1, side=4, width=8), torch.float32, CPU)
    inputs = workload.rivals["aten nchw"].make_inputs()
    leaves = [v.requires_grad_() for v in inputs.values()]
    out = workload.rivals["aten nchw"].function(**inputs)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, leaves, grad)
    with dk.use_backend("triton"):
        ours = dk.functional.depthwise_conv2d(inputs["x"].permute(0, 2, 3, 1), inputs["weight"], inputs["bias"])
    for got, wanted in zip(torch.autograd.grad(ours, leaves, grad.permute(0, 2, 3, 1)), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_cudnn_gives_the_reason():
    rival = depthwise_rivals(*SHAPE[1:], SHAPE.kernel_size, torch.float32, CPU)["cudnn nchw"]
    inputs = rival.make_inputs()
    assert rival.unavailable_reason("forward", inputs) == "cuDNN needs CUDA tensors"
    with rival.around():
        assert torch.backends.cudnn.enabled is True
        assert torch.backends.cudnn.benchmark is True
    # The arguments are valid; only their device is not supported.
    with pytest.raises(NotImplementedError, match="cudnn_convolution"):
        rival.function(**inputs)


@pytest.mark.parametrize(("taken", "refused"), [("Cudnn", False), ("CudaDepthwise2d", True)])
def test_no_gradient_of_another_library_passes_for_cudnns(monkeypatch, taken, refused):
    rival = depthwise_rivals(*SHAPE[1:], SHAPE.kernel_size, torch.float32, CPU)["cudnn nchw"]
    seen = []

    def select(*arguments):
        seen.append(arguments[3:])
        return type("Backend", (), {"name": taken})

    class OnGpu:
        device = torch.device("cuda")
        shape = (2, 8, 6, 6)

    monkeypatch.setattr(torch._C, "_select_conv_backend", select)
    inputs = rival.make_inputs() | {"x": OnGpu()}
    assert rival.unavailable_reason("forward", inputs) is None
    assert (rival.unavailable_reason("input_gradient", inputs) is not None) == refused
    assert seen == [([1, 1], [3, 3], [1, 1], False, [0, 0], 8)]


def test_torchs_selection_takes_these_arguments():
    x, weight, bias = torch.randn(2, 8, 6, 6), torch.randn(8, 1, 7, 7), torch.randn(8)
    taken = torch._C._select_conv_backend(x, weight, bias, [1, 1], [3, 3], [1, 1], False, [0, 0], 8)
    assert taken.name in torch._C._ConvBackend.__members__


def test_what_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda module: None)
    rival = liger_geglu((2, 3, 8), torch.float32, torch.device("cuda"))
    assert rival.unavailable_reason("forward", {}) == "liger-kernel is not installed (pip install liger-kernel)"
    monkeypatch.setattr(rivals, "find_spec", lambda module: "found")
    assert liger_geglu((2, 3, 8), torch.float32, torch.device("cuda")).unavailable_reason("forward", {}) is None
    assert liger_geglu((2, 3, 8), torch.float32, CPU).unavailable_reason("forward", {}) == "liger-kernel needs a GPU"


def test_fused_form_that_cannot_run():
    for form in ("triton", "cuda"):
        with pytest.raises(Unavailable, match="float64"):
            resolve(scaling(fused=form), "fused", CPU, torch.float64)
    assert resolve(scaling(), "fused", CPU, torch.float32).backend == "auto"


@pytest.mark.skipif(not extension_status().loaded, reason="the extension is missing")
def test_the_fused_form_on_a_cpu_is_that_in_cpp():
    for form in ("triton", "cuda"):
        assert resolve(scaling(fused=form), "fused", CPU, torch.float32).backend == "cpp"


@needs_inductor
@pytest.mark.parametrize(("width", "algorithm"), [(1024, "two passes"), (1032, "Welford")])
def test_the_variance_that_inductor_computes_is_named(width, algorithm):
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    norm = torch.compile(lambda x: torch.nn.functional.layer_norm(x, (width,)), dynamic=False)
    _, (code,) = run_and_get_code(norm, torch.randn(8, width))
    assert ("welford" in code.lower()) == (algorithm == "Welford")
    note = rivals.variance_note(width).partition(":")[0]
    assert note.endswith({"Welford": "by Welford's algorithm", "two passes": "in two passes"}[algorithm])


@pytest.mark.parametrize(("operator", "named"), [("td_layer_norm", True), ("td_rms_norm", False)])
def test_a_compiled_layer_norm_on_a_cpu_has_the_note(operator, named):
    work = dataclasses.replace(scaling(), operator=operator)
    assert bool(resolve(work, "compiled", CPU, torch.float32).note) == named
    assert not resolve(work, "eager", CPU, torch.float32).note
    assert not resolve(work, "compiled", torch.device("cuda"), torch.float32).note


@pytest.mark.parametrize("direction", ["forward", "input_gradient"])
def test_onnxruntime_computes_the_convolution(direction):
    rival = depthwise_rivals(2, 5, 16, 3, torch.float32, CPU)["onnxruntime nchw"]
    inputs = rival.make_inputs()
    problem = rival.unavailable_reason(direction, inputs)
    if direction == "input_gradient":
        assert problem is not None
        return
    if problem is not None:
        pytest.skip(problem)
    torch.testing.assert_close(rival.function(**inputs), rival.definition(**inputs))


@pytest.mark.parametrize("implementation", ["compiled", "max-autotune"])
def test_compilation(monkeypatch, implementation):
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.update(options) or function)
    monkeypatch.setattr(torch._dynamo, "reset", lambda: asked.update(reset=True))
    workload = scaling()
    rival = resolve(workload, implementation, CPU, torch.float32)
    mode = {"compiled": "default", "max-autotune": "max-autotune-no-cudagraphs"}[implementation]
    assert asked == {"reset": True, "fullgraph": True, "dynamic": False, "mode": mode}
    assert (rival.function, rival.backend) == (workload.function, "eager")
    assert torch._functorch.config.donated_buffer is False


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_norms_without_a_timestep(kind, residual):
    found = norm_rivals(kind, (2, 3, 8), torch.float32, CPU, residual)
    assert set(found) == {kind} | ({"liger", "quack"} if kind == "rms_norm" else {"liger"} if not residual else set())
    rival = found[kind]
    inputs = rival.make_inputs()
    assert set(rival.gradients["backward"]) == set(inputs)
    out = rival.function(**inputs)
    x = inputs["x"] + inputs["residual"] if residual else inputs["x"]
    if kind == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * inputs["weight"] + inputs.get("bias", 0)
    torch.testing.assert_close(out[0] if residual else out, expected)
    if residual:
        torch.testing.assert_close(out[1], inputs["x"] + inputs["residual"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="Triton's interpreter cannot run Liger-Kernel")
def test_liger_computes_what_is_said_of_it(device):
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    shape = 2, 3, 8
    found = [liger_geglu(shape, torch.float32, device)]
    for kind, residual in (("layer_norm", False), ("rms_norm", False), ("rms_norm", True)):
        found.append(norm_rivals(kind, shape, torch.float32, device, residual)["liger"])
    for rival in found:
        inputs = rival.make_inputs()
        torch.testing.assert_close(rival.function(**inputs), rival.definition(**inputs))


def test_attention_backends():
    workload = attention(Heads(1, 2, 5, 8), torch.float32, CPU)
    inputs = workload.make_inputs()
    assert workload.rivals["math"].unavailable_reason("forward", inputs) is None
    assert "CUDA" in workload.rivals["cudnn"].unavailable_reason("forward", inputs)
    torch.testing.assert_close(workload.rivals["math"].function(**inputs), workload.function(**inputs))
