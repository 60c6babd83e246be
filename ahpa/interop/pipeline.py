"""A diffusers pipeline that samples from a SiT or DiT which ahpa trained. This file is copied into
the folder of the weights, so it needs torch and diffusers only.

The transformer is diffusers' own DiTTransformer2DModel. Three things differ from diffusers'
DiTPipeline: the time embedding has the frequencies of DiT's and SiT's publications, 10000^(-i/128)
(diffusers' class has 10000^(-i/127), which changes every prediction a little); times may be
continuous, for velocities; the null class is the last row of the table.
"""

from collections.abc import Sequence
from typing import Any

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
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(
            num_classes=num_classes,
            time_scale=time_scale,
            reversed_time=reversed_time,
        )
        for module in transformer.modules():
            if isinstance(module, Timesteps):
                module.downscale_freq_shift = 0

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
        class_labels: int | Sequence[int],
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
            class_labels: A label for each image.
            guidance_scale: Scale of classifier-free guidance; 1 means none.
            guidance_interval: Times at which it is applied, bounds included.
            guidance_channels: How many of the latent's channels are guided; None for all.
            num_inference_steps: Steps of the scheduler.
            generator: Source of the noise.
            latents: The noise to start from, [B, C, h, w].
            output_type: "pil", "np" [B, H, W, 3], "pt" [B, 3, H, W] or "latent".
            return_dict: Whether to return an ImagePipelineOutput rather than a tuple.
        """
        device = self._execution_device
        config = self.transformer.config
        labels = torch.as_tensor(class_labels, device=device).reshape(-1)
        null = torch.full_like(labels, self.config["num_classes"])
        if latents is None:
            shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
            x = randn_tensor(shape, generator=generator, device=device)
        else:
            x = latents.to(device)
        scheduler = self.scheduler
        self._set_steps(num_inference_steps, device)
        variance = str(scheduler.config.get("variance_type", ""))
        keeps_variance = variance.startswith("learned")
        guided = config.in_channels if guidance_channels is None else guidance_channels
        low, high = guidance_interval
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
