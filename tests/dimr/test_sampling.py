from __future__ import annotations

import sys

import pytest
import torch

import dimr
from dimr.diffusion.sample import guided
from tests.support.small_models import TINY, inputs, perturbed_model

LABELS = [0, 3, 4]


@pytest.fixture(scope="module")
def model():
    return perturbed_model().eval()


@pytest.mark.parametrize("method", ["dpm-solver-fast", "dpm-solver-multistep"])
def test_same_seed_same_images(model, method):
    if method == "dpm-solver-multistep":
        pytest.importorskip("diffusers")
    draw = lambda seed: dimr.sample(  # noqa: E731
        model,
        LABELS,
        steps=4,
        method=method,
        guidance=dimr.Guidance("constant", 1.0),
        generator=torch.Generator().manual_seed(seed),
    )
    first = draw(5)
    assert first.shape == (3, 3, 8, 8)
    assert first.dtype == torch.float32
    assert first.isfinite().all()
    assert torch.equal(first, draw(5))
    assert not torch.equal(first, draw(6))


def test_noise_is_what_the_generator_gives(model):
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    given = dimr.sample(model, LABELS, noise=noise, steps=2)
    drawn = dimr.sample(model, torch.tensor(LABELS), steps=2, generator=torch.Generator().manual_seed(2))
    assert torch.equal(given, drawn)


def test_arguments_of_numpy(model):
    np = pytest.importorskip("numpy")
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    wanted = dimr.sample(model, LABELS, noise=noise, steps=4)
    for dtype in (np.int64, np.int32, np.uint8):
        labels = np.array(LABELS, dtype)
        assert torch.equal(dimr.sample(model, labels, noise=noise.numpy(), steps=np.int64(4)), wanted)
        assert torch.equal(dimr.sample(model, labels[:, None], noise=noise.double().numpy(), steps=4), wanted)
    assert torch.equal(dimr.sample(model, torch.tensor(LABELS)[:, None], noise=noise, steps=4), wanted)
    assert torch.equal(dimr.sample(model, [np.int64(label) for label in LABELS], noise=noise, steps=4), wanted)


@pytest.mark.parametrize("labels", [[], torch.tensor([], dtype=torch.int64), torch.empty(0, 1)])
def test_no_labels_give_no_images(model, labels):
    drawn = dimr.sample(model, labels, steps=2, guidance=dimr.Guidance("constant", 1.0))
    assert (drawn.shape, drawn.dtype) == ((0, 3, 8, 8), torch.float32)


def test_result_can_be_trained_on(model):
    out = dimr.sample(model, LABELS, steps=1).requires_grad_()
    out.square().sum().backward()
    assert out.grad is not None
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("guidance", [None, dimr.Guidance("constant", 0.7), dimr.Guidance("power", 3.0, 2.0)])
def test_guidance_is_one_batch_of_both(model, guidance):
    x, timestep = inputs(batch=3)["x"], 400.0
    labels = torch.tensor(LABELS)
    conditional = model(x, timestep, labels)[-1]
    wanted = conditional
    if guidance is not None:
        unconditional = model(x, timestep, torch.full((3,), TINY.num_classes))[-1]
        k = guidance.strength(timestep)
        wanted = unconditional + k * (conditional - unconditional)
    batches = []
    handle = model.register_forward_pre_hook(lambda module, arguments: batches.append(len(arguments[0])))
    found = guided(model, labels, guidance)(x, timestep)
    handle.remove()
    assert batches == [3 if guidance is None else 6]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_low_precision_model_keeps_the_state_in_float32(model):
    lowered = perturbed_model().bfloat16().eval()
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found, wanted = (dimr.sample(m, LABELS, noise=noise, steps=1) for m in (lowered, model))
    assert found.dtype == torch.float32
    assert (found - wanted).norm() / wanted.norm() < 0.1


def test_a_scheduler_of_the_callers_own(model):
    schedulers = pytest.importorskip("diffusers")
    scheduler = schedulers.DDIMScheduler(
        1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    assert dimr.sample(model, LABELS, steps=3, method=scheduler).isfinite().all()


def test_progress_bar(model, capsys):
    pytest.importorskip("tqdm")
    dimr.sample(model, LABELS, steps=5, progress=True)
    assert "5/5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be an integer of at least 1, got 0"),
        ({"steps": 2.5}, ValueError, "steps must be an integer of at least 1, got 2.5"),
        ({"method": "euler"}, ValueError, "method must be one of 'dpm-solver-fast', .* got 'euler'"),
        ({"class_labels": [0, 9, 1]}, ValueError, r"class_labels must be in \[0, 5\], got 9"),
        ({"guidance": 0.4}, TypeError, r'guidance must be a Guidance, such as Guidance\("constant", 0.4\), got 0.4'),
        ({"class_labels": 3}, ValueError, r"class_labels must have shape \[B\], got \[\]"),
        ({"class_labels": [0.5, 1.0, 2.0]}, TypeError, "class_labels must have dtype int64 or int32"),
        (
            {"noise": torch.zeros(3, 3, 4, 4)},
            ValueError,
            r"noise must be .* shape \[3, 3, 8, 8\], got .*\[3, 3, 4, 4\]",
        ),
        ({"noise": torch.zeros(3, 3, 8, 8, dtype=torch.int64)}, ValueError, "noise must be floating-point"),
    ],
)
def test_bad_input_is_named(model, arguments, error, message):
    with pytest.raises(error, match=message):
        dimr.sample(model, **{"class_labels": LABELS, "steps": 2, **arguments})


def test_guidance_needs_an_unconditional_class():
    config = dimr.DiMRConfig.from_dict({**TINY.to_dict(), "unconditional_class": False})
    with pytest.raises(ValueError, match="guidance needs a model with an unconditional class"):
        dimr.sample(dimr.DiMR(config), LABELS, guidance=dimr.Guidance("constant", 1.0))


@pytest.mark.parametrize(
    ("package", "arguments"), [("diffusers", {"method": "dpm-solver-multistep"}), ("tqdm", {"progress": True})]
)
def test_missing_package_is_named(model, monkeypatch, package, arguments):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package}.*pip install"):
        dimr.sample(model, LABELS, steps=1, **arguments)
