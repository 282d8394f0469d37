"""Models of the paper's ablations: outputs, gradients, starts, and that everything around a model takes them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import dimr
from dimr.checkpoints.official import to_official_state_dict
from dimr.model.layers import TimeMLP, TimeToken, sinusoids
from dimr.model.network import STD
from dimr.model.variants import ABLATIONS
from dimr.training.loop import Trainer, TrainingSettings
from tests.support.ablations import small_config


def started(model: dimr.DiMR) -> dimr.DiMR:
    """Away from the start, where zeros and equal parameters hide others."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 1, 8, 8), torch.rand(batch) * 999 + 1, torch.arange(batch) % 3


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_parameter_has_a_gradient(name):
    config = small_config(name)
    model = started(dimr.DiMR(config))
    x, timestep, labels = inputs(3)
    outputs = model(x, timestep, labels)
    assert [out.shape[-1] for out in outputs] == [8 // 2**i for i in reversed(range(config.num_branches))]
    assert config.prediction_sizes == tuple(out.shape[-1] for out in outputs)
    dimr.multi_scale_loss(outputs, torch.randn_like(x)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ABLATIONS)
def test_time_and_class_matter_and_samples_stand_alone(name):
    model = started(dimr.DiMR(small_config(name)))
    x, timestep, labels = inputs()
    with torch.no_grad():
        both = model(x, timestep, labels)[-1]
        torch.testing.assert_close(model(x[1:], timestep[1:], labels[1:])[-1], both[1:])
        torch.testing.assert_close(model(x, timestep[:1], labels)[-1][:1], both[:1])  # one time for the batch
        for other in (model(x, timestep.flip(0), labels), model(x, timestep, labels.flip(0))):
            assert (other[-1] - both).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["ablation-adaln-zero-m-4", "ablation-adaln-zero-m-3r"])
def test_adaln_zero_blocks_start_as_the_identity(name):
    model = dimr.DiMR(small_config(name))
    for branch, D in zip(model.branches, model.config.dims, strict=True):
        x = torch.randn(2, 2, 2, D) if branch is not model.branches[0] else torch.randn(2, 5, D)
        for block in branch.blocks:
            torch.testing.assert_close(block(x, torch.randn(2, D)), x, atol=0, rtol=0)
            assert block.modulation.proj.in_features == D
            hidden = block.modulation.hidden
            assert (hidden is None) == (name == "ablation-adaln-zero-m-3r")
            if hidden is not None:
                assert hidden.weight.std().item() == pytest.approx(STD, rel=0.3)


def test_modulation_by_hand():
    """A block's two residuals: x + gate * mix(norm(x) * (1 + scale) + shift)."""
    model = started(dimr.DiMR(small_config("ablation-adaln-zero-m-3r")))
    block = model.branches[1].blocks[0].double()
    x, c = torch.randn(2, 4, 4, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    norm = torch.nn.functional.layer_norm
    first, second = block.norm1, block.norm2
    parts = block.modulation.proj(torch.nn.functional.silu(c))[:, None, None].split(8, dim=-1)
    scale, shift, gate = parts[:3]
    wanted = x + gate * block.conv(norm(x, (8,), first.weight, first.bias) * (1 + scale) + shift)
    scale, shift, gate = parts[3:]
    wanted = wanted + gate * block.mlp(norm(wanted, (8,), second.weight, second.bias) * (1 + scale) + shift)
    torch.testing.assert_close(block(x, c), wanted)


def test_sinusoids_tell_timesteps_apart():
    t = torch.arange(1, 1001) / 500 - 1
    wave = sinusoids(t, 16)
    assert wave.shape == (1000, 16)
    torch.testing.assert_close(wave[:, 0], torch.arange(1, 1001).cos(), atol=2e-3, rtol=0)
    torch.testing.assert_close(wave[:, 8], torch.arange(1, 1001).sin(), atol=2e-3, rtol=0)
    distances = torch.cdist(wave, wave) + torch.eye(1000) * 9
    assert distances.min() > 1e-3
    assert TimeMLP(8, 16)(t[:3]).shape == (3, 8)
    assert TimeToken(8)(t[:3]).shape == (3, 1, 8)


def test_cascade_by_concatenation_is_the_sum_for_fitting_weights():
    plain = started(dimr.create_model("dimr-tiny-3r", input_size=8, kernel_size=3))
    other = dimr.DiMR(dataclasses.replace(plain.config, cascade="concat"))
    state = {name.replace("upsample.", "upsample.upsample."): value for name, value in plain.state_dict().items()}
    for i, D in enumerate(plain.config.dims[1:], start=1):
        state[f"branches.{i}.upsample.fuse.weight"] = torch.eye(D).repeat(1, 2)
        state[f"branches.{i}.upsample.fuse.bias"] = torch.zeros(D)
    other.load_state_dict(state)
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 4])
    with torch.no_grad():
        for mine, wanted in zip(other(x, 300.0, labels), plain(x, 300.0, labels), strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ABLATIONS)
def test_training_sampling_and_checkpoints(name, tmp_path):
    def batches(generator):
        labels = torch.randint(3, (4,), generator=generator)
        return labels[:, None, None, None].float().sub(1).expand(4, 1, 8, 8), labels

    settings = TrainingSettings(steps=3, batch_size=4, learning_rate=1e-3, warmup_steps=1, ema_decay=0.5)
    trainer = Trainer(dimr.DiMR(small_config(name)), batches, dataclasses.replace(settings, checkpointing="blocks"))
    assert list(trainer.run()) == [1, 2, 3]
    assert trainer.losses.isfinite().all()
    model = dimr.load_model(dimr.save_model(trainer.model, tmp_path))
    assert model.config == trainer.model.config
    generator = torch.Generator().manual_seed(0)
    images = dimr.sample(model, [0, 2], steps=3, guidance=dimr.Guidance("constant", 0.5), generator=generator)
    assert images.shape == (2, 1, 8, 8)
    assert images.isfinite().all()


@pytest.mark.parametrize("name", ABLATIONS)
def test_engine_and_published_names_refuse_what_they_do_not_know(name):
    model = dimr.DiMR(small_config(name))
    ablations = model.config.ablations
    if not ablations:
        dimr.optimize_for_inference(model, torch.float32)
        assert to_official_state_dict(model)
        return
    field, value = next(iter(ablations.items()))
    with pytest.raises(ValueError, match=f"model has {field}={value!r}.*the model itself"):
        dimr.optimize_for_inference(model)
    with pytest.raises(dimr.CheckpointError, match=f"{field}={value!r}"):
        to_official_state_dict(model)


@pytest.mark.parametrize("name", ABLATIONS)
def test_low_precision(name):
    """Under autocast, and with weights in bfloat16, the result is about that in float32."""
    model = started(dimr.DiMR(small_config(name)))
    x, timestep, labels = inputs()
    with torch.no_grad():
        wanted = model(x, timestep, labels)[-1]
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x, timestep, labels)[-1]
        assert (found - wanted).norm() < 0.05 * wanted.norm()
        found = model.to(torch.bfloat16)(x.bfloat16(), timestep, labels)[-1]
        assert found.dtype == torch.bfloat16
        assert (found - wanted).norm() < 0.1 * wanted.norm()


def combined_config() -> dimr.DiMRConfig:
    """All choices that go together in one model."""
    changes = {"first_branch": "convnext", "cascade": "concat", "branch_skips": False, "patch_size": 2}
    return small_config("ablation-adaln-zero-m-3r", input_size=16, modulation="mlp", **changes)


def test_choices_combine():
    model = started(dimr.DiMR(combined_config()))
    x = torch.randn(2, 1, 16, 16)
    outputs = model(x, torch.tensor([3.0, 800.0]), torch.tensor([0, 3]))
    assert tuple(out.shape[-1] for out in outputs) == model.config.prediction_sizes == (4, 8, 16)
    dimr.multi_scale_loss(outputs, torch.randn_like(x)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("config", [small_config("ablation-time-token-m-4"), combined_config()], ids=["uvit", "all"])
def test_compiles_without_a_graph_break(config):
    model = started(dimr.DiMR(config))
    x, labels = torch.randn(2, 1, config.input_size, config.input_size), torch.tensor([0, 3])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    timestep = torch.tensor([3.0, 800.0])
    torch.testing.assert_close(compiled(x, timestep, labels), model(x, timestep, labels), atol=1e-5, rtol=1e-5)


def test_resumed_training_is_uninterrupted_training():
    def batches(generator):
        return torch.randn(2, 1, 8, 8, generator=generator), torch.randint(3, (2,), generator=generator)

    def trainer():
        torch.manual_seed(0)
        return Trainer(dimr.DiMR(small_config("ablation-adaln-zero-m-3r")), batches, settings)

    settings = TrainingSettings(steps=4, batch_size=2, learning_rate=1e-2, warmup_steps=1, ema_decay=0.5)
    whole, first, second = trainer(), trainer(), trainer()
    list(whole.run())
    for step in first.run():
        if step == 2:
            break
    second.load_state_dict(first.state_dict())
    list(second.run())
    assert torch.equal(second.losses, whole.losses)
