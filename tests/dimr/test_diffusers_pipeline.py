"""Calling a pipeline: the samples of dimr.sample, by diffusers' conventions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("PIL")

from diffusers.callbacks import PipelineCallback

import dimr
import dimr_kernels as dk
from dimr.images import to_pixels
from dimr.sampling.autoencoder import decode_latents, latent_scale
from tests.support.pipelines import NAMES, latent_pipeline, pixel_pipeline, seeded
from tests.support.small_models import TINY

pytestmark = pytest.mark.filterwarnings("ignore:__array")  # diffusers' use of NumPy

LABELS = [0, 3, 4]


@pytest.fixture
def pipeline():
    return pixel_pipeline(id2label=NAMES)


def drawn(pipeline, labels=LABELS, **options):
    options = {"generator": seeded(), "num_inference_steps": 4, "output_type": "latent", **options}
    return pipeline(labels, **options).images


def sampled(pipeline, labels=LABELS, **options):
    options = {"generator": seeded(), "steps": 4, "method": "dpm-solver-multistep", **options}
    return dimr.sample(pipeline.transformer.to_dimr(), labels, **options)


@pytest.mark.parametrize("steps", [1, 2, 7, 12])
def test_samples_of_dimr_sample(pipeline, steps):
    assert torch.equal(drawn(pipeline, num_inference_steps=steps), sampled(pipeline, steps=steps))
    assert pipeline.num_timesteps == steps


@pytest.mark.parametrize(
    ("options", "guidance"),
    [
        ({"guidance_scale": 1.5}, dimr.Guidance("constant", 0.5)),
        ({"guidance_scale": 3}, dimr.Guidance("constant", 2.0)),
        ({"guidance_scale": 4.0, "guidance_power": 2.0}, dimr.Guidance("power", 4.0, 2.0)),
    ],
)
def test_guidance_of_dimr_sample(pipeline, options, guidance):
    found = drawn(pipeline, **options)
    assert torch.equal(found, sampled(pipeline, guidance=guidance))
    assert pipeline.guidance_scale == options["guidance_scale"]
    assert not torch.equal(found, drawn(pipeline))


def test_same_generator_same_images(pipeline):
    assert torch.equal(drawn(pipeline), drawn(pipeline))
    assert not torch.equal(drawn(pipeline), drawn(pipeline, generator=seeded(1)))


def test_a_generator_for_each_image(pipeline):
    found = drawn(pipeline, generator=[seeded(i) for i in range(3)])
    for i, label in enumerate(LABELS):
        torch.testing.assert_close(found[i], drawn(pipeline, label, generator=seeded(i))[0], rtol=1e-4, atol=1e-4)


def test_latents_to_start_from(pipeline):
    noise = torch.randn(3, 3, 8, 8, generator=seeded())
    assert torch.equal(drawn(pipeline, generator=None, latents=noise), drawn(pipeline))
    assert torch.equal(drawn(pipeline, latents=noise.double()), drawn(pipeline))


def test_classes_by_name(pipeline):
    assert pipeline.get_label_ids(["BEE", "dog, domestic", "cat"]) == [1, 3, 2]
    wanted = drawn(pipeline, [3, 2])
    for labels in (["dog, domestic", "CAT"], ["3", 2], torch.tensor([3, 2]), (3, "Cat")):
        assert torch.equal(drawn(pipeline, labels), wanted)
    assert drawn(pipeline, "eel").shape == drawn(pipeline, 4).shape == drawn(pipeline, torch.tensor(4)).shape
    assert torch.equal(drawn(pipeline, "eel"), drawn(pipeline, 4))
    assert torch.equal(drawn(pipeline, [TINY.num_classes]), sampled(pipeline, [TINY.num_classes]))  # unconditional


def test_forms_of_output(pipeline):
    state = drawn(pipeline)
    wanted = to_pixels(state)
    pictures = drawn(pipeline, output_type="pil")
    assert [picture.size for picture in pictures] == [(8, 8)] * 3
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures]), wanted.numpy())
    arrays = drawn(pipeline, output_type="np")
    assert arrays.shape == (3, 8, 8, 3)
    tensors = drawn(pipeline, output_type="pt")
    assert torch.equal(tensors, (state / 2 + 0.5).clamp(0, 1))
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    (alone,) = pipeline(LABELS, generator=seeded(), num_inference_steps=4, output_type="pt", return_dict=False)
    assert torch.equal(alone, tensors)


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_latents_become_pictures(kind):
    pipeline = latent_pipeline(kind)
    images = drawn(pipeline, output_type="pt")
    assert images.shape == (3, 3, 16, 16)
    wanted = decode_latents(pipeline.vae, drawn(pipeline), batch_size=3)
    torch.testing.assert_close(images, wanted / 2 + 0.5, rtol=1e-5, atol=1e-5)


def test_a_shift_of_the_latents_is_undone():
    pipeline = latent_pipeline()
    pipeline.vae.register_to_config(shift_factor=0.25)
    assert latent_scale(pipeline.vae).shift == 0.25
    wanted = pipeline.vae.decode(drawn(pipeline) / 0.18215 + 0.25).sample
    torch.testing.assert_close(drawn(pipeline, output_type="pt"), (wanted / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    pipeline = latent_pipeline()
    wanted = drawn(pipeline, num_inference_steps=1)
    assert pipeline.to(dtype) is pipeline
    assert {pipeline.dtype, pipeline.transformer.dtype, pipeline.vae.dtype} == {dtype}
    found = drawn(pipeline, num_inference_steps=1)
    assert found.dtype == torch.float32  # the state, whatever the model's dtype
    assert (found - wanted).norm() / wanted.norm() < 0.1
    assert drawn(pipeline, output_type="np").dtype == np.float32


def test_callback_sees_every_step(pipeline):
    seen = []

    def callback(pipe, i, timestep, tensors):
        assert pipe is pipeline
        seen.append((i, float(timestep), tensors["latents"].clone()))

    final = drawn(pipeline, callback_on_step_end=callback)
    assert [i for i, _, _ in seen] == [0, 1, 2, 3]
    assert [t for _, t, _ in seen] == pipeline.scheduler.timesteps.tolist()
    assert torch.equal(seen[-1][2], final)
    assert not torch.equal(seen[0][2], seen[1][2])


def test_callback_changes_the_latents(pipeline):
    def last(pipe, i, timestep, tensors):
        return {"latents": torch.full_like(tensors["latents"], 0.5)} if i == 3 else tensors

    def first(pipe, i, timestep, tensors):
        return {"latents": -tensors["latents"]} if i == 0 else {}

    assert (drawn(pipeline, callback_on_step_end=last) == 0.5).all()
    assert not torch.equal(drawn(pipeline, callback_on_step_end=first), drawn(pipeline))


class Halving(PipelineCallback):
    tensor_inputs = ["latents"]  # noqa: RUF012  # a name of diffusers'

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        callback_kwargs["latents"] = callback_kwargs["latents"] * 0.5
        return callback_kwargs


def test_callback_of_diffusers_own_kind(pipeline):
    found = drawn(pipeline, num_inference_steps=1, callback_on_step_end=Halving(cutoff_step_ratio=1.0))
    assert torch.equal(found, drawn(pipeline, num_inference_steps=1) / 2)


def test_interrupt(pipeline):
    states = []

    def callback(pipe, i, timestep, tensors):
        states.append(tensors["latents"])
        pipe._interrupt = i == 1
        return tensors

    found = drawn(pipeline, callback_on_step_end=callback)
    assert len(states) == 2
    assert pipeline.interrupt
    assert torch.equal(found, states[1])
    assert torch.equal(drawn(pipeline), sampled(pipeline))  # the next call is not


def test_progress_bar(pipeline, capsys):
    drawn(pipeline)
    assert capsys.readouterr().err == ""
    pipeline.set_progress_bar_config(disable=False, desc="drawing")
    drawn(pipeline)
    shown = capsys.readouterr().err
    assert "drawing" in shown
    assert "4/4" in shown


def test_nothing_is_recorded_for_autograd(pipeline):
    assert not drawn(pipeline).requires_grad
    assert not drawn(latent_pipeline(), output_type="pt").requires_grad


def test_inference_engine_in_the_models_place(pipeline, tmp_path):
    wanted = drawn(pipeline, guidance_scale=1.5)
    pipeline.transformer = dimr.optimize_for_inference(pipeline.transformer.to_dimr(), dtype=torch.float32)
    torch.testing.assert_close(drawn(pipeline, guidance_scale=1.5), wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match="an inference engine cannot be saved"):
        pipeline.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="an engine keeps the device and dtype it was made with"):
        pipeline.to(torch.bfloat16)


@pytest.mark.slow
def test_compiled_model_in_the_models_place(pipeline, tmp_path):
    with dk.use_backend("eager"):  # on a CPU "auto" takes another form of the norms under torch.compile
        wanted = drawn(pipeline)
        pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
        assert torch.equal(drawn(pipeline), wanted)
        pipeline.save_pretrained(tmp_path)
        assert torch.equal(drawn(type(pipeline).from_pretrained(tmp_path)), wanted)


def test_offloading():
    pytest.importorskip("accelerate")
    pipeline = latent_pipeline()
    wanted = drawn(pipeline, output_type="pt")
    order = []
    pipeline.enable_model_cpu_offload(device="cpu")
    for hook in pipeline._all_hooks:
        move = hook.hook.pre_forward

        def watched(module, *arguments, move=move, **options):
            order.append(type(module).__name__)
            return move(module, *arguments, **options)

        hook.hook.pre_forward = watched
    assert torch.equal(drawn(pipeline, output_type="pt"), wanted)
    assert list(dict.fromkeys(order)) == ["DiMRTransformer2DModel", "AutoencoderKL"]


def test_parts_make_another_pipeline(pipeline):
    again = type(pipeline)(**pipeline.components, id2label=pipeline.config.id2label)
    again.set_progress_bar_config(disable=True)
    assert again.get_label_ids("bee") == [1]
    assert torch.equal(drawn(again), drawn(pipeline))


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_labels_of_numpy(shape):
    np = pytest.importorskip("numpy")
    pipeline = pixel_pipeline(id2label=NAMES)
    wanted = drawn_pixels(pipeline, [0, 3], 2)
    for dtype in (np.int64, np.int32, np.uint8):
        labels = np.array([0, 3], dtype)
        assert torch.equal(drawn_pixels(pipeline, labels.reshape(shape), np.int64(2)), wanted)
        assert torch.equal(drawn_pixels(pipeline, list(labels), 2), wanted)
    names = np.array([NAMES[0], NAMES[3]])
    assert torch.equal(drawn_pixels(pipeline, names, 2), wanted)
    assert torch.equal(drawn_pixels(pipeline, np.int64(3), 2), drawn_pixels(pipeline, 3, 2))


def drawn_pixels(pipeline, labels, steps):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(labels, generator=seeded(), num_inference_steps=steps, output_type="pt").images
