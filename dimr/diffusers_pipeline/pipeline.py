"""The pipeline, and the helpers that it calls: its parts from checkpoints, its model, class labels, checks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
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
from ..diffusion.sample import Guidance, guided
from ..diffusion.samplers import scheduler_step, set_timesteps, step_options
from ..diffusion.schedule import NoiseSchedule
from ..images import SHOWN_CHANNELS
from ..inference import InferenceEngine
from ..model.config import DiMRConfig
from ..model.network import DiMR
from ..model.variants import list_models
from ..sampling.autoencoder import latent_scale, load_autoencoder
from ..sampling.class_names import class_id, find_class_names
from ..utils import set_default_mode
from .scheduler import check_scheduler, make_scheduler
from .transformer import DiMRTransformer2DModel

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
Labels = int | str | Sequence[int | str] | Tensor  # or a NumPy array
Callback = Callable[[Any, int, Tensor, dict[str, Any]], Optional[dict[str, Any]]]  # noqa: UP045


class DiMRPipeline(DiffusionPipeline):
    """Draws images of given classes, with a model of pixels (no ``vae``) or of latents.

    Args:
        transformer: the model, or an engine that :func:`dimr.optimize_for_inference` made from its
            :meth:`~DiMRTransformer2DModel.to_dimr`.
        scheduler: a scheduler of diffusers for noise prediction with the model's noise levels. Replace it with
            ``pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)``.
        vae: decodes latents; None for a model of pixels.
        id2label: the names of all classes by id, or None.
        beta_start, beta_end: the noise schedule (:class:`dimr.NoiseSchedule`) that the model was trained with.

    Raises:
        ValueError: the parts do not fit each other.
    """

    transformer: Any
    scheduler: Any
    vae: Any

    model_cpu_offload_seq: Any = "transformer->vae"
    _optional_components = ["vae"]  # noqa: RUF012  # a name of diffusers'
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        # diffusers reads these annotations, and some of its versions know neither names nor "|".
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
        """Make a pipeline of a checkpoint folder or a published file, in float32 on the CPU.

        Args:
            path: a folder that :func:`dimr.save_model`, ``dimr train`` or ``dimr convert`` wrote, or a published
                ``.pth`` or ``.safetensors`` file.
            model: the name of the model in a published file, from :func:`dimr.list_models`.
            vae: an autoencoder or the folder of one; None for a model of pixels.
            schedule: the noise schedule that the model was trained with; None is the default one.
            class_names: names of all classes; None takes the folder's, or torchvision's for 1000 classes, if any.

        Raises:
            FileNotFoundError, CheckpointError: see :func:`dimr.load_model` and :func:`dimr.load_official_checkpoint`.
            ValueError: a file without ``model``, or the parts do not fit each other.
        """
        path, schedule = Path(path), schedule or NoiseSchedule()
        network = _network(path, model)
        names = find_class_names(network.config.num_classes, path) if class_names is None else class_names
        return cls(
            transformer=DiMRTransformer2DModel.from_dimr(network),
            scheduler=make_scheduler(schedule),
            vae=load_autoencoder(vae) if isinstance(vae, (str, os.PathLike)) else vae,
            id2label=None if names is None else {str(i): name for i, name in enumerate(names)},
            beta_start=schedule.beta_start,
            beta_end=schedule.beta_end,
        )

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
        """Set ``pipeline._interrupt = True`` in a callback to stop and decode early, as in diffusers' pipelines."""
        return self._interrupt

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Look up class ids by name, ignoring case. An unknown name is a ValueError."""
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
            guidance_scale: ``g`` of ``uncond + g (cond - uncond)``; 1 is no guidance. It is one more than the scale of
                ``dimr.Guidance("constant", scale)``.
            guidance_power: let ``g`` rise from 1 at the noisy end, like ``dimr.Guidance("power", g, guidance_power)``.
            num_inference_steps: number of steps of the scheduler; most schedulers call the model once per step.
            generator: source of the noise, or a list of one per image.
            latents: ``[B, C, S, S]`` noise of unit variance to start from, instead of drawing it.
            eta: for the schedulers that take one (DDIM); others ignore it.
            output_type: "pil", "np" (``[B, H, W, 3]`` in [0, 1]), "pt" (``[B, 3, H, W]`` in [0, 1]) or "latent" (the
                model's own space, float32).
            return_dict: False for the plain tuple ``(images,)``.
            callback_on_step_end: ``callback(pipeline, i, timestep, tensors)`` after each step; "latents" in the
                dictionary that it returns, if any, replace the pipeline's.
            callback_on_step_end_tensor_inputs: names of the tensors that it gets; only "latents".

        Raises:
            ValueError, TypeError: an argument does not fit, or the parts do not fit each other.
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
        """Check the parts again at every call, because any of them may have been replaced."""
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
        """Run the scheduler; like in dimr.sample, the state is float32 and timesteps stay on the CPU."""
        denoise = guided(Predictor(self.transformer, x.device), class_labels, guidance)
        timesteps = set_timesteps(self.scheduler, steps)
        options = step_options(self.scheduler, **options)
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
        """Save as diffusers does. A pipeline with an inference engine has no weights to save and raises a TypeError."""
        if isinstance(self.transformer, InferenceEngine):
            raise TypeError("an inference engine cannot be saved: save the pipeline with the model it was made from")
        super().save_pretrained(save_directory, *arguments, **options)
        for path in Path(save_directory).rglob("*.safetensors"):
            set_default_mode(path)


# Parts


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


def architecture_of(transformer: Any) -> DiMRConfig:
    """Return the configuration of a model, compiled or not, or of an engine."""
    return transformer.config if isinstance(transformer, InferenceEngine) else transformer.architecture


class Predictor:
    """A pipeline's transformer as a :class:`~dimr.diffusion.sample.NoisePredictor`.

    Args:
        device: the inputs' device; an offloaded model is moved there only when it is called.
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


# Class labels


def names_of(id2label: Mapping[str, str] | Mapping[int, str] | None, config: DiMRConfig) -> list[str] | None:
    """List the names in the order of their ids, which are strings in JSON.

    Raises:
        ValueError: not exactly one name per class.
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


def ids_of(class_labels: Any, config: DiMRConfig, names: Sequence[str] | None) -> list[int]:
    """Convert to one id per image. The unconditional class, if there is one, has an id but no name.

    Raises:
        TypeError: a label is neither an id nor a name.
        ValueError: an unknown class, or no labels.
    """
    if not isinstance(class_labels, (Tensor, str)) and hasattr(class_labels, "__array__"):  # NumPy's arrays and scalars
        class_labels = class_labels.tolist() if class_labels.dtype.kind in "US" else torch.as_tensor(class_labels)
    if isinstance(class_labels, Tensor):
        column = class_labels.dim() == 2 and class_labels.shape[1] == 1
        if class_labels.is_floating_point() or not (class_labels.dim() <= 1 or column):
            raise TypeError(
                f"class_labels must be integers of shape [B], got {class_labels.dtype} {list(class_labels.shape)}"
            )
        class_labels = class_labels.reshape(-1).tolist()
    if isinstance(class_labels, (Integral, str)):
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
    if isinstance(label, bool) or not isinstance(label, Integral):
        raise TypeError(f"class_labels must be ids or names, got {label!r}")
    number = int(label)
    if not 0 <= number < config.num_embeddings:
        raise ValueError(f"class_labels must be in [0, {config.num_embeddings - 1}], got {number}")
    return number


# Checks of parts and arguments


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
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"num_inference_steps must be an integer of at least 1, got {steps!r}")


def check_callback_inputs(asked: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs must be among {', '.join(map(repr, known))}; "
            f"got {', '.join(map(repr, unknown))}"
        )


def make_guidance(scale: float, power: float | None, config: DiMRConfig) -> Guidance | None:
    """Convert the pipeline's scale to a :class:`Guidance`; None if the scale is 1."""
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"guidance_scale must be a number, got {scale!r}")
    if not (math.isfinite(scale) and scale >= 1):
        raise ValueError(f"guidance_scale must be a finite number of at least 1, which is no guidance; got {scale}")
    if scale == 1:
        return None
    if not config.unconditional_class:
        raise ValueError("guidance_scale must be 1: this model has no unconditional class, so it cannot be guided")
    return Guidance("constant", scale - 1) if power is None else Guidance("power", scale, power)
