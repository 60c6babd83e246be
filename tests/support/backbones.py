"""Small backbones of every kind with weights away from their start, inputs for them, and MMDiT's joint block written out."""

import math

import torch

from ahpa.registry import BACKBONES, build
from ahpa.registry.contracts import TextCond

SIZES = dict(depth=3, hidden_size=48, num_heads=4)
CLASSES, TEXT = dict(num_classes=10), dict(text_dim=20)
SMALL = {
    "SiT": CLASSES, "DiT": CLASSES, "MMDiT": TEXT,
    "ClassStreamSiT": dict(CLASSES, class_width=16), "ClassStreamDiT": dict(CLASSES, class_width=16),
    "ClassStreamMMDiT": dict(TEXT, class_width=16), "DDT": dict(CLASSES, encoder_depth=1),
    "DDTDiT": dict(CLASSES, encoder_depth=1), "DDTMMDiT": dict(TEXT, encoder_depth=1)}  # fmt: skip
SMALL = {name: dict(type=name, **SIZES, **options) for name, options in SMALL.items()}


def moved(cfg, **changes):
    """A backbone by name or config, for latents [4, 8, 8]; no weight is where training starts (many are zero there)."""
    torch.manual_seed(0)
    model = build(BACKBONES, {**(SMALL[cfg] if isinstance(cfg, str) else cfg), **changes}, input_size=8, in_channels=4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def small_inputs(model, batch=2):
    """x of all streams, t [batch] and a condition: labels with the null class, or five text tokens."""
    values = torch.Generator().manual_seed(1)
    x = {name: torch.randn(batch, *shape, generator=values) for name, shape in model.streams.items()}
    t = torch.tensor([0.37, 0.8, 0.0])[:batch]
    if hasattr(model, "text_dim"):
        return x, t, TextCond(torch.randn(batch, 5, model.text_dim, generator=values))
    return x, t, torch.tensor([1, 10, 0])[:batch]


def norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(w, name, x):  # w: a state dict
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def joint_block(w, number, text, image, conditions, *, heads=4):
    """MMDiT's joint block `number` from the state dict w, with plain operations: one softmax over all tokens. conditions:
    after the SiLU, of the text's half and the image's, each [B, 1 or tokens, D] -> (text, image)."""
    names, tokens = [f"joint_blocks.{number}.{half}_block" for half in ("context", "x")], [text, image]
    width = image.shape[-1]
    mods = [
        linear(w, f"{name}.adaLN_modulation.1", c).split(width, -1) for name, c in zip(names, conditions, strict=True)
    ]
    packed = torch.cat([linear(w, f"{name}.attn.qkv", norm(h) * (1 + m[1]) + m[0])
                        for name, h, m in zip(names, tokens, mods, strict=True)], 1)  # fmt: skip
    q, k, v = (part.unflatten(-1, (heads, width // heads)).transpose(1, 2) for part in packed.split(width, -1))
    attended = ((q @ k.mT / math.sqrt(width // heads)).softmax(-1) @ v).transpose(1, 2).flatten(2)
    updated = []
    for name, h, m, rows in zip(names, tokens, mods, attended.split([text.shape[1], image.shape[1]], 1), strict=True):
        if len(m) == 6:  # not the last block's text half
            h = h + m[2] * linear(w, f"{name}.attn.proj", rows)
            inner = gelu(linear(w, f"{name}.mlp.fc1", norm(h) * (1 + m[4]) + m[3]))
            h = h + m[5] * linear(w, f"{name}.mlp.fc2", inner)
        updated.append(h)
    return tuple(updated)
