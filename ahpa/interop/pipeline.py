"""A diffusers pipeline that samples from a SiT or DiT which ahpa trained. This file is copied into
the folder of the weights, so it needs torch and diffusers only.

The transformer is diffusers' own DiTTransformer2DModel. Three things differ from diffusers'
DiTPipeline: the time embedding has the frequencies of DiT's and SiT's publications, 10000^(-i/128)
(diffusers' class has 10000^(-i/127), which changes every prediction a little); times may be
continuous, for velocities; the null class is the last row of the table.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, Optional

import numpy as np
import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; booleans are not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


class AlignedTransformerPipeline(DiffusionPipeline):
    """Class-conditional sampling. t is in [0, 1], and t = 1 is noise.

    Args:
        transformer: A DiTTransformer2DModel.
        vae: An AutoencoderKL.
        scheduler: FlowMatchEulerDiscreteScheduler for velocities; for noise DDIMScheduler,
            DDPMScheduler or another that does not rescale x.
        num_classes: Labels are 0..num_classes-1; num_classes is the null class.
        time_scale: Factor on t before it is embedded; above 1 the product is rounded.
        reversed_time: Whether the network was trained with t = 1 as data: it is then given 1 - t,
            and its velocity is negated.
        id2label: Names of the classes, {"0": "fish", ...}; may be empty.
    """

    model_cpu_offload_seq: Any = "transformer->vae"

    def __init__(
        self,
        transformer: ModelMixin,  # diffusers reads these types, and needs classes for them
        vae: ModelMixin,
        scheduler: SchedulerMixin,
        num_classes: int = 1000,
        time_scale: float = 1.0,
        reversed_time: bool = False,
        id2label: Optional[dict] = None,  # noqa: UP045 (diffusers 0.33 reads no other form)
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(
            num_classes=num_classes,
            time_scale=time_scale,
            reversed_time=reversed_time,
            id2label=dict(id2label or {}),
        )
        for module in transformer.modules():
            if isinstance(module, Timesteps):
                module.downscale_freq_shift = 0

    def get_label_ids(self, names: str | Sequence[str]) -> list[int]:
        """Return the numbers of classes by their names. Raises ValueError for an unknown one."""
        numbers = {name: int(number) for number, name in self.config["id2label"].items()}
        wanted = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in wanted if name not in numbers]
        if unknown:
            known = ", ".join(list(numbers)[:30]) or "(the classes have no names)"
            raise ValueError(f"class_labels: {unknown[0]!r} is unknown. Valid: {known}.")
        return [numbers[name] for name in wanted]

    def check_labels(self, class_labels: Any) -> list[int]:
        """Return class numbers for numbers or names.

        Raises:
            ValueError: For an empty list, an unknown class, or something that is no class.
        """
        single = isinstance(class_labels, (int, str)) or not isinstance(class_labels, Iterable)
        listed = [class_labels] if single else list(class_labels)
        if not listed:
            raise ValueError("class_labels: the list is empty; give a class for each image.")
        count = self.config["num_classes"]
        labels = []
        for wanted in listed:
            try:
                label = self.get_label_ids(wanted)[0] if isinstance(wanted, str) else wanted
                label = -1 if isinstance(label, bool) else operator.index(label)
            except TypeError:
                label = -1
            if not 0 <= label < count:
                raise ValueError(f"class_labels: {wanted!r} is not in 0..{count - 1}.")
            labels.append(label)
        return labels

    def predict(self, x: Tensor, t: float | Tensor, labels: Tensor) -> Tensor:
        """Run the transformer.

        Args:
            x: Latents [B, C, h, w].
            t: One time in [0, 1] for all, a number or 0-d.
            labels: Labels [B].

        Returns:
            Its output [B, C or 2C, h, w].
        """
        reversed_time = self.config["reversed_time"]
        time_scale = self.config["time_scale"]
        time = torch.as_tensor(t, dtype=torch.float32, device=x.device)
        if reversed_time:
            time = 1 - time
        time = time * time_scale
        if time_scale > 1:
            time = time.round()
        out = self.transformer(x, timestep=time.expand(len(x)), class_labels=labels).sample
        return -out if reversed_time else out

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] of about unit scale to images [B, 3, H, W] in [0, 1]."""
        config = self.vae.config
        factor = config.scaling_factor
        offset = config.shift_factor or 0.0
        if config.latents_mean and config.latents_std:
            mean = torch.tensor(config.latents_mean, device=latents.device)
            std = torch.tensor(config.latents_std, device=latents.device)
            offset = mean.view(1, -1, 1, 1)
            factor = factor / std.view(1, -1, 1, 1)
        raw = latents.float() / factor + offset
        images = self.vae.decode(raw.to(self.vae.dtype)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str],
        guidance_scale: float = 4.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        guidance_channels: int | None = None,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw images.

        Args:
            class_labels: A class for each image, by its number or name.
            guidance_scale: Scale of classifier-free guidance; 1 means none.
            guidance_interval: Times at which it is applied, bounds included.
            guidance_channels: How many of the latent's channels are guided; None for all.
            num_inference_steps: Steps of the scheduler.
            generator: Source of the noise.
            latents: The noise to start from, [B, C, h, w].
            output_type: "pil", "np" [B, H, W, 3], "pt" [B, 3, H, W] or "latent".
            return_dict: Whether to return an ImagePipelineOutput rather than a tuple.

        Raises:
            ValueError: For an unknown class, an empty list, or an option out of its range.
        """
        device = self._execution_device
        config = self.transformer.config
        labels = torch.tensor(self.check_labels(class_labels), device=device)
        shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
        if latents is not None and not isinstance(latents, Tensor):
            raise ValueError(f"latents: must be a tensor, got a {type(latents).__name__}.")
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"latents: must have the shape {shape}, got {tuple(latents.shape)}.")
        if not is_number(guidance_scale):
            raise ValueError(f"guidance_scale: must be a finite number, got {guidance_scale!r}.")
        if type(num_inference_steps) is not int or num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps: must be a positive integer, got {num_inference_steps!r}."
            )
        if output_type not in OUTPUT_TYPES:
            valid = ", ".join(OUTPUT_TYPES)
            raise ValueError(f"output_type: {output_type!r} is unknown. Valid: {valid}.")
        bounds = guidance_interval if isinstance(guidance_interval, (list, tuple)) else ()
        pair = len(bounds) == 2 and all(is_number(bound) for bound in bounds)
        if not pair or not 0 <= bounds[0] <= bounds[1] <= 1:
            raise ValueError(
                f"guidance_interval: must be two numbers in [0, 1], got {guidance_interval!r}."
            )
        low, high = bounds
        guided = config.in_channels if guidance_channels is None else guidance_channels
        if type(guided) is not int or not 1 <= guided <= config.in_channels:
            raise ValueError(
                f"guidance_channels: must be in 1..{config.in_channels}, got {guidance_channels!r}."
            )
        null = torch.full_like(labels, self.config["num_classes"])
        if latents is None:
            x = randn_tensor(shape, generator=generator, device=device)
        else:
            x = latents.to(device)
        scheduler = self.scheduler
        self._set_steps(num_inference_steps, device)
        variance = str(scheduler.config.get("variance_type", ""))
        keeps_variance = variance.startswith("learned")
        for step in self.progress_bar(scheduler.timesteps):
            t = step / scheduler.config.num_train_timesteps
            given = x.to(self.transformer.dtype)
            if guidance_scale != 1 and low <= float(t) <= high:
                doubled = torch.cat([given, given])
                both = self.predict(doubled, t, torch.cat([labels, null])).float()
                out, without = both.chunk(2)
                difference = out[:, :guided] - without[:, :guided]
                mixed = without[:, :guided] + guidance_scale * difference
                out = torch.cat([mixed, out[:, guided:]], dim=1)
            else:
                out = self.predict(given, t, labels).float()
            if not keeps_variance:
                out = out[:, : config.in_channels]
            x = scheduler.step(out, step, x, generator=generator).prev_sample
        images = self._finish(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _set_steps(self, count: int, device: torch.device) -> None:
        """Set the times of the scheduler: for velocities on a straight line from 1 to 0."""
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):
            sigmas = np.linspace(1, 0, count + 1)[:-1]
            self.scheduler.set_timesteps(sigmas=sigmas, device=device)
        else:
            self.scheduler.set_timesteps(count, device=device)

    def _finish(self, x: Tensor, output_type: str) -> Any:
        """Turn latents at t = 0 into the requested kind of output."""
        if output_type == "latent":
            return x
        images = self.decode(x)
        if output_type == "pt":
            return images
        arrays = images.cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(arrays) if output_type == "pil" else arrays
