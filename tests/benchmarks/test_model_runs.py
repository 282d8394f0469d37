"""The compared forms of the model compute the same, and the profile adds up."""

from __future__ import annotations

import json

import pytest
import torch

import dimr
import dimr_kernels as dk
from benchmarks import profile_model
from benchmarks.model_runs import FORWARDS, TRAININGS, TrainingRun, forward_of, largest_batch, make_inputs
from tests.support.small_models import TINY

CPU = torch.device("cpu")
EAGER_FORWARDS = [form for form in FORWARDS if not form.compiled]
EAGER_TRAININGS = [form for form in TRAININGS if not form.compiled]


def prediction(form, dtype):
    torch.manual_seed(0)
    inputs = make_inputs(TINY, 4, CPU)
    with dk.use_backend(form.backend):
        outputs = forward_of(trained_config(), form, CPU, dtype, "aot_eager")(*inputs)
    halves = outputs if form.base == "published" else [outputs]
    return torch.cat([half[-1] for half in halves]).float()


def trained_config():
    torch.manual_seed(1)  # seeds the weights of the next model
    return TINY


@pytest.fixture(autouse=True)
def _heads_predict_something(monkeypatch):
    """Give the heads weights, since new models predict zero."""
    from dimr.model import network

    initialize = network.initialize

    def with_heads(model):
        initialize(model)
        for branch in model.branches:
            torch.nn.init.normal_(branch.head.conv.weight)

    monkeypatch.setattr(network, "initialize", with_heads)


@pytest.mark.parametrize("form", EAGER_FORWARDS, ids=lambda form: form.name)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_forms_agree(form, dtype, tolerance):
    wanted = prediction(FORWARDS[2], torch.float32)
    found = prediction(form, dtype)
    assert wanted.std() > 0.1
    assert (found - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize("form", EAGER_TRAININGS, ids=lambda form: form.name)
def test_training_forms_agree(form):
    losses = []
    for chosen in (form, EAGER_TRAININGS[1]):
        torch.manual_seed(1)
        with dk.use_backend(chosen.backend):
            run = TrainingRun(TINY, chosen, CPU, torch.float32, "aot_eager")
            torch.manual_seed(2)
            run.set_batch(2)
            run.step()
            run.step()
        losses.append(run.trainer.losses[:2])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


def test_published_form_keeps_its_stream_in_float32():
    seen = []
    form = FORWARDS[0]
    forward = forward_of(TINY, form, CPU, torch.bfloat16, "aot_eager")
    model = forward.__closure__[[*forward.__code__.co_freevars].index("model")].cell_contents
    model.branches[0].blocks[0].register_forward_hook(lambda block, arguments, out: seen.append(out.dtype))
    forward(*make_inputs(TINY, 2, CPU))
    assert seen == [torch.float32, torch.float32]  # two calls


@pytest.mark.parametrize(("start", "limit", "most", "found"), [
    (8, 100, 1024, 64), (8, 8, 1024, 8), (64, 5, 1024, 4), (8, 9999, 32, 32), (8, 0, 32, 0), (4, 16, 4, 4)
])  # fmt: skip
def test_largest_batch(start, limit, most, found):
    assert largest_batch(lambda batch: batch <= limit, start, most) == found


def test_largest_batch_tries_no_more_than_it_must():
    tried = []
    largest_batch(lambda batch: tried.append(batch) or batch <= 8, 32, 64)
    assert tried == [32, 16, 8]


def test_batch_that_does_not_fit_leaves_a_run_that_works(monkeypatch):
    run = TrainingRun(TINY, EAGER_TRAININGS[1], CPU, torch.float32, "aot_eager")
    step = run.step

    def short_of_memory():
        if len(next(run.batches)[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step()

    monkeypatch.setattr(run, "step", short_of_memory)
    assert largest_batch(run.fits, 1, 8) == 2


def test_profile_of_a_tiny_model(tmp_path):
    profile_model.main(["dimr-tiny-3r", "--rows", "1", "--form", "tidy", "--output", str(tmp_path)])
    (json_file,) = tmp_path.glob("*/profile-dimr-tiny-3r-tidy-1.json")
    record = json.loads(json_file.read_text())
    kernels = record["kernels"]
    assert sum(k["share"] for k in kernels) == pytest.approx(1)
    assert sum(k["microseconds"] for k in kernels) == pytest.approx(record["kernel_us"])
    assert record["floor_us"] == pytest.approx(sum(record["floor_of_parts_us"].values()))
    products = sum(k["calls"] for k in kernels if k["name"] in ("aten::addmm", "aten::mm"))
    blocks = dimr.model_config("dimr-tiny-3r").blocks
    # qkv, out and two of the MLP in a transformer block, two in the others; embeddings, skips, two cascades.
    assert products == 4 * blocks[0] + 2 * sum(blocks[1:]) + 3 + sum(b // 2 for b in blocks) + 2
    text = json_file.with_suffix(".md").read_text()
    assert "aten::addmm" in text
    assert "| long skips |" in text


@pytest.mark.parametrize(("name", "bound"), [
    ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", "matmul"), ("aten::addmm", "matmul"),
    ("_td_norm_fwd_kernel", "bytes"), ("_geglu_fwd_kernel", "bytes"),
    ("_geglu_linear_fwd_kernel", "matmul"), ("_depthwise_conv_fwd_kernel", "vector"),
    ("pytorch_flash::flash_fwd_kernel", "attention"), ("depthwise_fwd_kernel", "vector"), ("Memcpy DtoD", "bytes"),
    ("cudnn_generated_fort_native_sdpa_sm90", "attention"), ("vectorized_elementwise_kernel", "bytes"),
])  # fmt: skip
def test_what_a_kernel_is_bound_by(name, bound):
    assert profile_model.bound_of(name) == bound
