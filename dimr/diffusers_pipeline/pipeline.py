"""Sampling as one of diffusers' pipelines."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders import AutoencoderKL, AutoencoderTiny
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..checkpoints import load_model, load_official_checkpoint
from ..diffusion.guidance import Guidance
from ..diffusion.sample import guided
from ..diffusion.samplers import scheduler_step, step_options
from ..diffusion.schedule import NoiseSchedule
from ..images import SHOWN_CHANNELS
from ..inference import InferenceEngine
from ..model.config import DiMRConfig
from ..model.network import DiMR
from ..model.variants import list_models
from ..sampling.autoencoder import latent_scale, load_autoencoder
from ..sampling.class_names import class_id, find_class_names
from .scheduler import check_scheduler, make_scheduler
from .transformer import DiMRTransformer2DModel

# Checks of a pipeline's parts and of its call's arguments.


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_vae(vae: Any, config: DiMRConfig) -> None:
    if vae is not None and vae.config.latent_channels != config.in_channels:
        raise ValueError(
            f"vae must have the model's {config.in_channels} latent channels, got {vae.config.latent_channels}"
        )


def check_output_type(output_type: str, config: DiMRConfig, vae: Any) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(map(repr, OUTPUT_TYPES))}; got {output_type!r}")
    if output_type != "latent" and vae is None and config.in_channels not in SHOWN_CHANNELS:
        raise ValueError(
            f"this model makes latents of {config.in_channels} channels: give the pipeline a vae, "
            f"or ask for output_type 'latent'"
        )


def check_latents(latents: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(latents, Tensor):
        raise TypeError(f"latents must be a Tensor, got {type(latents).__name__}")
    if tuple(latents.shape) != shape or not latents.is_floating_point():
        raise ValueError(
            f"latents must be floating-point of shape {list(shape)}, got {latents.dtype} {list(latents.shape)}"
        )


def check_generators(generator: Any, batch: int) -> None:
    generators = generator if isinstance(generator, (list, tuple)) else [generator] * batch
    if not all(one is None or isinstance(one, torch.Generator) for one in generators):
        raise TypeError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
    if len(generators) != batch:
        raise ValueError(f"generator must be one, or a list of one per image ({batch}), got {len(generators)}")


def check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"num_inference_steps must be an integer of at least 1, got {steps!r}")


def check_callback_inputs(asked: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs must be among {', '.join(map(repr, known))}; "
            f"got {', '.join(map(repr, unknown))}"
        )


def make_guidance(scale: float, power: float | None, config: DiMRConfig) -> Guidance | None:
    """None where ``scale`` asks for none."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"guidance_scale must be a number, got {scale!r}")
    if not (math.isfinite(scale) and scale >= 1):
        raise ValueError(f"guidance_scale must be a finite number of at least 1, which is no guidance; got {scale}")
    if scale == 1:
        return None
    if not config.unconditional_class:
        raise ValueError("guidance_scale must be 1: this model has no unconditional class, so it cannot be guided")
    return Guidance("constant", scale - 1) if power is None else Guidance("power", scale, power)


# Classes as a pipeline takes them: ids, names, or a tensor of ids.


Labels = int | str | Sequence[int | str] | Tensor


def names_of(id2label: Mapping[str, str] | Mapping[int, str] | None, config: DiMRConfig) -> list[str] | None:
    """Names in the order of the ids, whose keys are text in a file of JSON.

    Raises:
        ValueError: not one name for each class.
    """
    if id2label is None:
        return None
    by_id = {str(key): name for key, name in id2label.items()}
    wanted = [str(i) for i in range(config.num_classes)]
    if sorted(by_id) != sorted(wanted) or not all(isinstance(name, str) for name in by_id.values()):
        raise ValueError(
            f"id2label must name each of the classes 0 to {config.num_classes - 1}, got {len(by_id)} entries"
        )
    return [by_id[key] for key in wanted]


def ids_of(class_labels: Labels, config: DiMRConfig, names: Sequence[str] | None) -> list[int]:
    """One id an image. The unconditional class, where there is one, can be asked for by its id.

    Raises:
        TypeError: something that is neither an id nor a name.
        ValueError: no such class, or no classes at all.
    """
    if isinstance(class_labels, Tensor):
        if class_labels.is_floating_point() or class_labels.dim() > 1:
            raise TypeError(
                f"class_labels must be integers of shape [B], got {class_labels.dtype} {list(class_labels.shape)}"
            )
        class_labels = class_labels.reshape(-1).tolist()
    if isinstance(class_labels, (int, str)):
        class_labels = [class_labels]
    if not isinstance(class_labels, Sequence):
        raise TypeError(f"class_labels must be ids or names, got {class_labels!r}")
    ids = [_id_of(label, config, names) for label in class_labels]
    if not ids:
        raise ValueError("class_labels must have at least one entry")
    return ids


def _id_of(label: object, config: DiMRConfig, names: Sequence[str] | None) -> int:
    if isinstance(label, str):
        if names is None:
            raise ValueError(f"class_labels: this pipeline knows no names (id2label), give ids; got {label!r}")
        return class_id(label, config.num_classes, names)
    if isinstance(label, bool) or not isinstance(label, int):
        raise TypeError(f"class_labels must be ids or names, got {label!r}")
    if not 0 <= label < config.num_embeddings:
        raise ValueError(f"class_labels must be in [0, {config.num_embeddings - 1}], got {label}")
    return label


# A pipeline's transformer as :func:`dimr.sampling.guided` calls one.


def architecture_of(transformer: Any) -> DiMRConfig:
    """Of a model, compiled or not, or of an engine."""
    return transformer.config if isinstance(transformer, InferenceEngine) else transformer.architecture


class Predictor:
    """See :class:`dimr.sampling.NoisePredictor`.

    Args:
        device: where the inputs are; a model that is offloaded comes there only when it is called.
    """

    def __init__(self, transformer: Any, device: torch.device) -> None:
        self._transformer = transformer
        self.config = architecture_of(transformer)
        self.device = device
        self.dtype: torch.dtype = transformer.dtype

    def __call__(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self._transformer, InferenceEngine):
            return self._transformer(x, timestep, class_labels)
        return self._transformer(x, timestep - 1, class_labels, return_dict=False)[1]


# A pipeline's parts from this package's checkpoints.


def components(
    path: str | os.PathLike[str],
    model: str | None,
    vae: Any,
    schedule: NoiseSchedule | None,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Arguments of :class:`~dimr.diffusers_pipeline.DiMRPipeline`; see its ``from_checkpoint``."""
    path, schedule = Path(path), schedule or NoiseSchedule()
    network = _network(path, model)
    names = find_class_names(network.config.num_classes, path) if class_names is None else class_names
    return {
        "transformer": DiMRTransformer2DModel.from_dimr(network),
        "scheduler": make_scheduler(schedule),
        "vae": load_autoencoder(vae) if isinstance(vae, (str, os.PathLike)) else vae,
        "id2label": None if names is None else {str(i): name for i, name in enumerate(names)},
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
    }


def _network(path: Path, model: str | None) -> DiMR:
    if path.is_dir():
        if model is not None:
            raise ValueError(f"model must be None for a folder, whose config.json says what it holds; got {model!r}")
        return load_model(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if model is None:
        raise ValueError(f"model must say what the file {path} holds: one of {', '.join(list_models())}")
    return load_official_checkpoint(path, model)


# Annotations are values here: diffusers reads those of __init__, and some of its versions know neither names nor "|".


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
    ) -> DiMRPipeline:
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
        return cls(**components(path, model, vae, schedule, class_names))

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
