"""One real training step on synthetic images, with the real parts of a config but without its data."""

import time

import torch

from ..registry import MODELS, OPTIM_WRAPPERS, build
from .optim import build_optimizer
from .progress import peak_memory

BATCH = 2


def synthetic_batch(model, *, batch: int = BATCH, seed: int = 0) -> dict:
    """Random images of the model's resolution and random labels or prompts."""
    stream = torch.Generator().manual_seed(seed)
    side = model.resolution
    return dict(
        image=torch.randint(0, 256, (batch, 3, side, side), generator=stream, dtype=torch.uint8),
        **model.conditioner.example(batch, stream),
        noise_seed=seed,
        diagnose=True,
    )


def one_step(cfg) -> tuple[torch.nn.Module, float, float]:
    """-> (the model after one step, seconds, peak memory in GiB)."""
    torch.manual_seed((cfg.get("randomness") or {}).get("seed", 0))
    model = build(MODELS, cfg["model"], where="model")
    model.load_weights()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    options = {**cfg["optim_wrapper"], "accumulative_counts": 1}
    options["optimizer"] = build_optimizer(options["optimizer"], model)
    wrapper = build(OPTIM_WRAPPERS, options, where="optim_wrapper")
    began = time.perf_counter()
    losses = model.train_step(synthetic_batch(model), optim_wrapper=wrapper)
    wrapper.zero_grad()
    model.update_ema()
    print("terms of the step: " + "  ".join(f"{name} {float(value.detach()):.4g}" for name, value in losses.items()))
    return model, time.perf_counter() - began, peak_memory()
