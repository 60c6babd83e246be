"""Small backbones of every kind with weights away from their initial values, inputs for them, and
transformer blocks written out with plain operations."""

import math

import torch

from ahpa.registry import BACKBONES, build
from ahpa.registry.contracts import TextCond

SIZES = dict(depth=3, hidden_size=48, num_heads=4)
CLASSES = dict(num_classes=10)
TEXT = dict(text_dim=20)
OPTIONS = {
    "SiT": CLASSES,
    "DiT": CLASSES,
    "MMDiT": TEXT,
    "ClassStreamSiT": dict(CLASSES, class_width=16),
    "ClassStreamDiT": dict(CLASSES, class_width=16),
    "ClassStreamMMDiT": dict(TEXT, class_width=16),
    "DDT": dict(CLASSES, encoder_depth=1),
    "DDTDiT": dict(CLASSES, encoder_depth=1),
    "DDTMMDiT": dict(TEXT, encoder_depth=1),
}
SMALL = {name: dict(type=name, **SIZES, **options) for name, options in OPTIONS.items()}


def moved(cfg, **changes):
    """Build a backbone by name or config for latents [4, 8, 8], and move every weight away from
    its initial value (many are zero there)."""
    torch.manual_seed(0)
    options = {**(SMALL[cfg] if isinstance(cfg, str) else cfg), **changes}
    model = build(BACKBONES, options, input_size=8, in_channels=4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def small_inputs(model, batch=2):
    """Return x of all streams, t [batch], and labels with the null class or five text tokens."""
    values = torch.Generator().manual_seed(1)
    x = {
        name: torch.randn(batch, *shape, generator=values) for name, shape in model.streams.items()
    }
    t = torch.tensor([0.37, 0.8, 0.0])[:batch]
    if model.takes == "prompts":
        return x, t, TextCond(torch.randn(batch, 5, model.text_dim, generator=values))
    return x, t, torch.tensor([1, 10, 0])[:batch]


def norm(x, eps=1e-6):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(w, name, x):
    """Apply the linear layer `name` of the state dict w."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def joint_block(w, number, text, image, conditions, *, heads=4):
    """MMDiT's joint block `number` from the state dict w, with plain operations: one softmax over
    all tokens.

    conditions: of the text half and the image half, after the SiLU, each [B, 1 or tokens, D].
    Returns (text, image).
    """
    names = [f"joint_blocks.{number}.{half}_block" for half in ("context", "x")]
    tokens = [text, image]
    width = image.shape[-1]
    mods = [
        linear(w, f"{name}.adaLN_modulation.1", c).split(width, -1)
        for name, c in zip(names, conditions, strict=True)
    ]
    packed = torch.cat(
        [
            linear(w, f"{name}.attn.qkv", norm(h) * (1 + m[1]) + m[0])
            for name, h, m in zip(names, tokens, mods, strict=True)
        ],
        1,
    )
    q, k, v = (
        part.unflatten(-1, (heads, width // heads)).transpose(1, 2)
        for part in packed.split(width, -1)
    )
    weights = (q @ k.mT / math.sqrt(width // heads)).softmax(-1)
    attended = (weights @ v).transpose(1, 2).flatten(2)
    rows_of = attended.split([text.shape[1], image.shape[1]], 1)
    updated = []
    for name, h, m, rows in zip(names, tokens, mods, rows_of, strict=True):
        if len(m) == 6:  # not the last block's text half
            h = h + m[2] * linear(w, f"{name}.attn.proj", rows)
            inner = gelu(linear(w, f"{name}.mlp.fc1", norm(h) * (1 + m[4]) + m[3]))
            h = h + m[5] * linear(w, f"{name}.mlp.fc2", inner)
        updated.append(h)
    return tuple(updated)
