"""The model, its gradients, its loss and its samples against the published implementation."""

from __future__ import annotations

import pytest
import torch

import dimr
import dimr_kernels as dk
from dimr.diffusion.loss import noise_target
from tests.support.official import (
    CONFIGS,
    official_model,
    official_tensors,
    published_gradients,
    relative_error,
)

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="takes the interpreter minutes; test_fused_parity has a smaller model"
)
TOLERANCE = 1e-4
SHARED_LOG_SNR = 1.25


def timesteps(log_snr):
    return (log_snr + 4) / 8 * 1000


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """The published numbers were computed in float32 throughout; a GPU's convolutions would round to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("kind", ["per_sample", "shared"])
@pytest.mark.parametrize("backend", ["eager", pytest.param("triton", marks=needs_gpu)])
def test_outputs_and_every_gradient(case, kind, backend, device):
    wanted, model = official_tensors(case), official_model(case).to(device)
    x = wanted["x"].to(device, copy=True).requires_grad_()
    timestep = timesteps(wanted["log_snr"]).to(device) if kind == "per_sample" else timesteps(SHARED_LOG_SNR)
    with dk.use_backend(backend):
        outputs = model(x, timestep, wanted["y"].to(device))
    for i, out in enumerate(outputs):
        assert relative_error(out, wanted[f"{kind}.out.{i}"]) < TOLERANCE, f"out.{i}"

    generator = torch.Generator().manual_seed(int(wanted["cotangent_seed"]))
    loss = sum((out * torch.randn(out.shape, generator=generator).to(device)).sum() for out in outputs)
    assert loss.item() == pytest.approx(wanted[f"{kind}.loss"].item(), rel=TOLERANCE)
    loss.backward()
    assert relative_error(x.grad, wanted[f"{kind}.grad.x"]) < TOLERANCE
    assert_gradients(published_gradients(model), kind, wanted)


def assert_gradients(found, kind, wanted):
    norms = {k.removeprefix(f"{kind}.gradnorm."): v for k, v in wanted.items() if k.startswith(f"{kind}.gradnorm.")}
    whole = {k.removeprefix(f"{kind}.grad."): v for k, v in wanted.items() if k.startswith(f"{kind}.grad.")}
    assert len(norms) >= len(found) - 1
    assert len(whole) > 50
    for name, norm in norms.items():
        if name != "x":
            assert found[name].norm().item() == pytest.approx(norm.item(), rel=TOLERANCE), name
    for name, gradient in whole.items():
        if name != "x":
            assert relative_error(found[name], gradient) < TOLERANCE, name


@pytest.mark.parametrize("case", CONFIGS)
def test_loss(case, device):
    wanted = {name: value.to(device) for name, value in official_tensors(case).items() if "grad" not in name}
    model = official_model(case).to(device)
    x0, noise, steps = wanted["loss.x0"], wanted["loss.eps"], wanted["loss.n"]
    noised = dimr.NoiseSchedule().add_noise(x0, noise, steps)
    torch.testing.assert_close(noised, wanted["loss.xn"], rtol=0, atol=1e-5)
    for size in model.config.resolutions:
        torch.testing.assert_close(noise_target(noise, size), wanted[f"loss.target.{size}"], rtol=0, atol=1e-6)
    loss = dimr.multi_scale_loss(model(noised, steps, wanted["y"]), noise)
    torch.testing.assert_close(loss, wanted["loss.per_sample"], rtol=1e-5, atol=0)


SAMPLING = {
    "nocfg": (10, None),
    "constant": (20, dimr.Guidance("constant", 0.4)),
    "power": (11, dimr.Guidance("power", 4.0, 2.0)),
}


@pytest.mark.parametrize("case", SAMPLING)
def test_sampling(case, device):
    wanted, model = official_tensors("tdrms_2r"), official_model("tdrms_2r").to(device)
    steps, guidance = SAMPLING[case]
    found = dimr.sample(model, wanted["y"], noise=wanted["sample.z"], steps=steps, guidance=guidance)
    assert relative_error(found, wanted[f"sample.{case}.out"]) < 1e-3
