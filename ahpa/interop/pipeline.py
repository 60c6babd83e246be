"""A diffusers pipeline that samples from a SiT or DiT which ahpa trained. This file is copied beside the exported weights,
so it needs torch and diffusers only.

The transformer is diffusers' own DiTTransformer2DModel. Three things differ from diffusers' DiTPipeline: the time embedding
has the frequencies of DiT's and SiT's publications, 10000^(-i/128) (diffusers' class has 10000^(-i/127), which changes
every prediction a little); times may be continuous, for velocities; the null class is the last row of the table.
"""

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.models.embeddings import Timesteps
from diffusers.utils.torch_utils import randn_tensor


class AlignedTransformerPipeline(DiffusionPipeline):
    """Class-conditional sampling. t in [0, 1], t = 1 is noise.

    transformer: DiTTransformer2DModel; vae: AutoencoderKL; scheduler: FlowMatchEulerDiscreteScheduler for velocities,
    DDIMScheduler, DDPMScheduler or another that takes x as it is for noise. num_classes: labels 0..num_classes-1, and
    num_classes is the null class; time_scale: t is multiplied by it (and rounded where it is above 1) before it is
    embedded; reversed_time: the network was trained with t = 1 as data, so it is given 1 - t and its velocity is negated.
    """

    model_cpu_offload_seq = "transformer->vae"

    def __init__(self, transformer, vae, scheduler, num_classes: int = 1000, time_scale: float = 1.0,
                 reversed_time: bool = False):  # fmt: skip
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(num_classes=num_classes, time_scale=time_scale, reversed_time=reversed_time)
        for module in transformer.modules():
            if isinstance(module, Timesteps):
                module.downscale_freq_shift = 0

    def predict(self, x, t, labels):
        """x [B, C, h, w], t in [0, 1] (a number or 0-d), labels [B] -> the transformer's output [B, C or 2C, h, w]."""
        options = self.config
        t = torch.as_tensor(t, dtype=torch.float32, device=x.device)
        t = (1 - t if options.reversed_time else t) * options.time_scale
        t = t.round() if options.time_scale > 1 else t
        out = self.transformer(x, timestep=t.expand(len(x)), class_labels=labels).sample
        return -out if options.reversed_time else out

    def decode(self, latents):
        """Latents [B, C, h, w] of about unit scale -> images [B, 3, H, W] in [0, 1]."""
        config = self.vae.config
        factor, offset = config.scaling_factor, config.shift_factor or 0.0
        if config.latents_mean and config.latents_std:
            offset = torch.tensor(config.latents_mean, device=latents.device).view(1, -1, 1, 1)
            factor = factor / torch.tensor(config.latents_std, device=latents.device).view(1, -1, 1, 1)
        raw = latents.float() / factor + offset
        return (self.vae.decode(raw.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def __call__(self, class_labels, guidance_scale: float = 4.0, guidance_interval=(0.0, 1.0),
                 guidance_channels: int | None = None, num_inference_steps: int = 50, generator=None, latents=None,
                 output_type: str = "pil", return_dict: bool = True):  # fmt: skip
        """class_labels: a number for each image -> images ('pil', 'np' [B, H, W, 3], 'pt' [B, 3, H, W] or 'latent').

        guidance_scale: 1 is none; applied for t inside guidance_interval to the first guidance_channels of the latent
        (all by default). latents: the noise to start from [B, C, h, w].
        """
        config, scheduler, device = self.transformer.config, self.scheduler, self._execution_device
        label = torch.as_tensor(class_labels, device=device).reshape(-1)
        null = torch.full_like(label, self.config.num_classes)
        shape = (len(label), config.in_channels, config.sample_size, config.sample_size)
        x = randn_tensor(shape, generator=generator, device=device) if latents is None else latents.to(device)
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):  # t on a straight line from 1 to 0
            scheduler.set_timesteps(sigmas=np.linspace(1, 0, num_inference_steps + 1)[:-1], device=device)
        else:
            scheduler.set_timesteps(num_inference_steps, device=device)
        keeps_variance = str(getattr(scheduler.config, "variance_type", "")).startswith("learned")
        guided = config.in_channels if guidance_channels is None else guidance_channels
        low, high = guidance_interval
        for step in self.progress_bar(scheduler.timesteps):
            t = step / scheduler.config.num_train_timesteps
            given = x.to(self.transformer.dtype)
            if guidance_scale != 1 and low <= float(t) <= high:
                both = self.predict(torch.cat([given, given]), t, torch.cat([label, null])).float()
                out, without = both.chunk(2)
                mixed = without[:, :guided] + guidance_scale * (out[:, :guided] - without[:, :guided])
                out = torch.cat([mixed, out[:, guided:]], dim=1)
            else:
                out = self.predict(given, t, label).float()
            out = out if keeps_variance else out[:, : config.in_channels]
            x = scheduler.step(out, step, x, generator=generator).prev_sample
        images = x if output_type == "latent" else self.decode(x)
        if output_type in ("pil", "np"):
            images = images.cpu().permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
