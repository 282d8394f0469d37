from __future__ import annotations

import math

import pytest
import torch

import dimr
import dimr_kernels as dk
from tests.support.small_models import TINY, inputs, perturbed_model


@pytest.mark.parametrize("norm", ["td_layer", "td_rms"])
@pytest.mark.parametrize(("dims", "layers"), [((16,), (2,)), ((16, 12), (3, 1)), ((16, 12, 8), (1, 2, 5))])
def test_shapes(norm, dims, layers):
    config = dimr.DiMRConfig(3, 8, dims, layers, num_heads=2, num_classes=5, kernel_size=3, norm=norm)
    outputs = dimr.DiMR(config)(**inputs(config))
    assert [tuple(out.shape) for out in outputs] == [(2, 3, s, s) for s in config.resolutions]
    assert all(out.is_contiguous() for out in outputs)


def test_a_new_model_predicts_zero_and_learns_everywhere():
    model = dimr.DiMR(TINY)
    arguments = inputs()
    outputs = model(**arguments)
    assert all(not out.any() for out in outputs)
    dimr.multi_scale_loss(outputs, torch.randn_like(arguments["x"])).mean().backward()
    assert all(branch.head.conv.weight.grad.abs().sum() > 0 for branch in model.branches)
    for name, gradient in gradients_of(perturbed_model()).items():
        assert gradient.abs().sum() > 0, name


def gradients_of(model):
    loss = sum(out.square().sum() for out in model(**inputs(batch=4)))
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


def test_initial_weights():
    torch.manual_seed(0)
    model = dimr.create_model("dimr-tiny-3r")
    qkv = model.branches[0].blocks[0].attn.qkv.weight
    assert qkv.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.branches[0].class_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.branches[1].blocks[0].mlp.out.bias.any()


def test_samples_do_not_mix():
    """Each row of a batch is what it is alone, whatever its neighbours' class and timestep."""
    model, batch = perturbed_model().eval(), inputs(batch=3)
    together = model(**batch)
    for i in range(3):
        alone = model(**{name: value[i : i + 1] for name, value in batch.items()})
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[i])


def test_ways_to_give_one_timestep():
    model, batch = perturbed_model().eval(), inputs()
    wanted = model(batch["x"], torch.tensor([250.0, 250.0]), batch["class_labels"])
    batch["class_labels"] = batch["class_labels"].int()
    ways = (250, 250.0, torch.tensor(250.0), torch.tensor([250]), torch.tensor([250.0, 250.0], dtype=torch.float64))
    for timestep in ways:
        for a, b in zip(model(batch["x"], timestep, batch["class_labels"]), wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_empty_batch():
    assert [tuple(out.shape) for out in dimr.DiMR(TINY)(**inputs(batch=0))] == [
        (0, 3, 2, 2),
        (0, 3, 4, 4),
        (0, 3, 8, 8),
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    model, batch = perturbed_model().eval(), inputs()
    wanted = model(**batch)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        autocast = model(**batch)
    lowered = model.to(dtype)(batch["x"].to(dtype), batch["timestep"], batch["class_labels"])
    for outputs in (autocast, lowered):
        for a, b in zip(outputs, wanted, strict=True):
            assert a.dtype == dtype
            assert (a.float() - b).norm() / b.norm() < 0.1


IMAGES, STEPS, LABELS = torch.zeros(2, 3, 8, 8), torch.tensor([1.0, 1000.0]), torch.tensor([0, 5])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(3, 8, 8)}, ValueError, r"x must have shape \[B, 3, 8, 8\], got \[3, 8, 8\]"),
        ({"x": torch.zeros(2, 4, 8, 8)}, ValueError, r"x must have shape \[B, 3, 8, 8\], got \[2, 4, 8, 8\]"),
        ({"x": torch.zeros(2, 3, 8, 16)}, ValueError, r"x must have shape"),
        ({"x": IMAGES.double()}, TypeError, "x must have the model's dtype torch.float32.*float64"),
        ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
        ({"x": torch.zeros(2, 3, 8, 8, device="meta")}, ValueError, "x is on meta, the model is on cpu"),
        ({"timestep": 0}, ValueError, r"timestep must be in \(0, 1000\], got 0"),
        ({"timestep": 1000.5}, ValueError, "timestep must be in .* got 1000.5"),
        ({"timestep": math.nan}, ValueError, "timestep must be in .* got nan"),
        ({"timestep": torch.tensor([5.0, math.nan])}, ValueError, "timestep must be in .* got nan"),
        ({"timestep": torch.tensor([-1.0, 5.0])}, ValueError, "timestep must be in .* got -1.0"),
        ({"timestep": torch.ones(3)}, ValueError, r"timestep must be a scalar or have shape \[1\] or \[2\], got \[3\]"),
        ({"timestep": "noon"}, TypeError, "timestep must be a number"),
        ({"timestep": True}, TypeError, "timestep must be a number"),
        ({"class_labels": torch.tensor([0, 6])}, ValueError, r"class_labels must be in \[0, 5\], got 6"),
        ({"class_labels": torch.tensor([-1, 0])}, ValueError, r"class_labels must be in \[0, 5\], got -1"),
        (
            {"class_labels": torch.tensor([0])},
            ValueError,
            r"class_labels must have shape \[2\], one per sample, got \[1\]",
        ),
        ({"class_labels": torch.zeros(2)}, TypeError, "class_labels must have dtype int64 or int32, got torch.float32"),
        ({"class_labels": [0, 1]}, TypeError, "class_labels must be a Tensor, got list"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    model = dimr.DiMR(TINY)
    with pytest.raises(error, match=message):
        model(**{"x": IMAGES, "timestep": STEPS, "class_labels": LABELS, **arguments})


def test_not_a_configuration():
    with pytest.raises(TypeError, match="config must be a DiMRConfig, got dict"):
        dimr.DiMR({"dims": (16,)})


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_compiles_whole(backend, device):
    """One graph, forward and backward, with the same numbers. Both kinds of branch, norm and long skip are in it."""
    config = dimr.DiMRConfig(1, 4, (8, 4), (2, 1), num_heads=2, num_classes=5, kernel_size=3, norm="td_rms")
    model = perturbed_model(config).to(device)
    batch = {name: value.to(device) for name, value in inputs(config).items()}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with dk.use_backend(backend):
        wanted, found = model(**batch), compiled(**batch)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)
        parameters = list(model.parameters())
        for a, b in zip(gradients(found, parameters), gradients(wanted, parameters), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def gradients(outputs, parameters):
    return torch.autograd.grad(sum(out.square().sum() for out in outputs), parameters)


def test_forward_does_not_read_the_device():
    """On a device whose values cannot be read (meta) the forward runs, so it never waits for a GPU."""
    with torch.device("meta"):
        model = dimr.DiMR(TINY)
    arguments = {name: value.to("meta") for name, value in inputs().items()}
    with dk.use_backend("eager"):
        assert model(**arguments)[-1].shape == (2, 3, 8, 8)
