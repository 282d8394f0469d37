"""Sampling as one of diffusers' pipelines."""

# Annotations are values here: diffusers reads those of __init__, and some of its versions know neither names nor "|".
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, Union

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders import AutoencoderKL, AutoencoderTiny
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..autoencoder import latent_scale
from ..guidance import Guidance
from ..inference import InferenceEngine
from ..samplers.diffusers_scheduler import scheduler_step, step_options
from ..sampling import guided
from ..schedule import NoiseSchedule
from . import loading
from .checks import (
    check_callback_inputs,
    check_generators,
    check_latents,
    check_output_type,
    check_steps,
    check_vae,
    make_guidance,
)
from .classes import Labels, ids_of, names_of
from .predictor import Predictor, architecture_of
from .scheduler import check_scheduler
from .transformer import DiMRTransformer2DModel

Callback = Callable[[Any, int, Tensor, dict[str, Any]], Optional[dict[str, Any]]]  # noqa: UP045


class DiMRPipeline(DiffusionPipeline):
    """Images of classes, from a model of pixels (no ``vae``) or of latents.

    Args:
        transformer: the model, or what :func:`dimr.optimize_for_inference` made of its
            :meth:`~DiMRTransformer2DModel.to_dimr`.
        scheduler: any of diffusers' for noise prediction with the model's noise levels. Swap it with
            ``pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)``.
        vae: decodes latents; None for a model of pixels.
        id2label: the classes' names by id, all or none.
        beta_start, beta_end: the noise schedule (:class:`dimr.NoiseSchedule`) that the model was trained with.

    Raises:
        ValueError: parts that do not fit each other.
    """

    transformer: Any
    scheduler: Any
    vae: Any

    model_cpu_offload_seq: Any = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012  # a name of diffusers'
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        transformer: Union[DiMRTransformer2DModel, InferenceEngine],  # noqa: UP007
        scheduler: SchedulerMixin,
        vae: Optional[Union[AutoencoderKL, AutoencoderTiny]] = None,  # noqa: UP007, UP045
        id2label: Optional[dict] = None,  # noqa: UP045
        beta_start: float = NoiseSchedule.beta_start,
        beta_end: float = NoiseSchedule.beta_end,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        id2label = None if id2label is None else {str(i): name for i, name in id2label.items()}  # as JSON keeps it
        self.register_to_config(id2label=id2label, beta_start=beta_start, beta_end=beta_end)
        self.image_processor = VaeImageProcessor()
        self._interrupt = False
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self.class_names = names_of(id2label, architecture_of(transformer))
        self._check_parts()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        model: str | None = None,
        vae: Any = None,
        schedule: NoiseSchedule | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "DiMRPipeline":
        """A pipeline of a checkpoint of this package's or of a published file, in float32 on the CPU.

        Args:
            path: a folder that :func:`dimr.save_model`, ``dimr train`` or ``dimr convert`` wrote, or a published
                ``.pth`` or ``.safetensors`` file.
            model: which model a published file holds, from :func:`dimr.list_models`.
            vae: an autoencoder or the folder of one; None for a model of pixels.
            schedule: what the model was trained with.
            class_names: None takes the folder's, or for 1000 classes torchvision's, where there are any.

        Raises:
            FileNotFoundError, CheckpointError: as :func:`dimr.load_model` and :func:`dimr.load_official_checkpoint`.
            ValueError: a file without ``model``, or parts that do not fit each other.
        """
        return cls(**loading.components(path, model, vae, schedule, class_names))

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule(self.config["beta_start"], self.config["beta_end"])

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Set ``pipeline._interrupt = True`` in a callback to decode what there is, as in diffusers' pipelines."""
        return self._interrupt

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Ids of classes by name, in any case of letters. A name that is not there is a ValueError."""
        return ids_of(label, architecture_of(self.transformer), self.class_names)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels,
        guidance_scale: float = 1.0,
        guidance_power: float | None = None,
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        eta: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw one image per class label.

        Args:
            class_labels: ids or names, one or several, or a tensor of ids.
            guidance_scale: ``g`` of ``uncond + g (cond - uncond)``; 1 is none. It is one more than the scale of
                ``dimr.Guidance("constant", scale)``.
            guidance_power: let ``g`` rise from 1 at the noisy end, as ``dimr.Guidance("power", g, guidance_power)``.
            num_inference_steps: as the scheduler counts; most call the model once a step.
            generator: source of the noise, or one for each image.
            latents: ``[B, C, S, S]`` noise of unit variance to start from, instead of drawing it.
            eta: for the schedulers that take one (DDIM); others ignore it.
            output_type: "pil", "np" (``[B, H, W, 3]`` in [0, 1]), "pt" (``[B, 3, H, W]`` in [0, 1]) or "latent" (what
                the model works on, float32).
            return_dict: False for the plain tuple ``(images,)``.
            callback_on_step_end: ``callback(pipeline, i, timestep, tensors)`` after each step; "latents" in the
                dictionary that it returns, if it returns one, take the place of the pipeline's.
            callback_on_step_end_tensor_inputs: which tensors it gets: "latents".

        Raises:
            ValueError, TypeError: an argument that does not fit, by name, or parts that do not fit each other.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_steps(num_inference_steps)
        self._check_parts()
        config = architecture_of(self.transformer)
        check_output_type(output_type, config, self.vae)
        ids = ids_of(class_labels, config, self.class_names)
        guidance = make_guidance(guidance_scale, guidance_power, config)
        device = self._execution_device
        x = self._noise(len(ids), generator, latents, device)
        self._interrupt, self._guidance_scale = False, guidance_scale
        x = self._denoised(
            x, torch.tensor(ids, device=device), guidance, num_inference_steps,
            {"generator": generator, "eta": eta}, callback_on_step_end, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        images: Any = x if output_type == "latent" else self._pictures(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check_parts(self) -> None:
        """Any of them may have been exchanged since the pipeline was made."""
        config = architecture_of(self.transformer)
        check_scheduler(self.scheduler, self.schedule)
        check_vae(self.vae, config)

    def _noise(
        self, batch: int, generator: torch.Generator | list[torch.Generator] | None, latents: Tensor | None,
        device: torch.device,
    ) -> Tensor:  # fmt: skip
        config = architecture_of(self.transformer)
        shape = (batch, config.in_channels, config.input_size, config.input_size)
        check_generators(generator, batch)
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        check_latents(latents, shape)
        return latents.to(device, torch.float32)

    def _denoised(
        self, x: Tensor, class_labels: Tensor, guidance: Guidance | None, steps: int, options: Mapping[str, Any],
        callback: Callback | PipelineCallback | MultiPipelineCallbacks | None, names: Sequence[str],
    ) -> Tensor:  # fmt: skip
        """The state is float32 whatever the model's dtype, and steps are counted on the host, as in dimr.sample."""
        denoise = guided(Predictor(self.transformer, x.device), class_labels, guidance)
        self.scheduler.set_timesteps(steps, device="cpu")
        options = step_options(self.scheduler, **options)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        x = x * self.scheduler.init_noise_sigma
        for i, step in enumerate(self.progress_bar(timesteps)):
            if self._interrupt:
                break
            x = scheduler_step(denoise, x, self.scheduler, step, options)
            if callback is not None:
                tensors = {name: x for name in names}
                x = (callback(self, i, step, tensors) or {}).get("latents", x)
        return x

    def _pictures(self, x: Tensor, output_type: str) -> Any:
        if self.vae is not None:
            unscaled = latent_scale(self.vae).undo(x.to(self.vae.dtype))
            x = self.vae.decode(unscaled, return_dict=False)[0]
        return self.image_processor.postprocess(x, output_type=output_type)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *arguments: Any, **options: Any) -> None:
        """As diffusers' pipelines; a pipeline with an inference engine has no weights to save and says so."""
        if isinstance(self.transformer, InferenceEngine):
            raise TypeError("an inference engine cannot be saved: save the pipeline with the model it was made from")
        super().save_pretrained(save_directory, *arguments, **options)

    def enable_sequential_cpu_offload(self, *arguments: Any, **options: Any) -> None:
        """Not here: fused operators read weights of layers that are never called, which would still be elsewhere."""
        raise NotImplementedError("this pipeline has no sequential CPU offload; use enable_model_cpu_offload()")
