"""The published layouts as modules of their own: a reading of the official codes, written with
timm's layers as they are and without ours, so that a strict load of an export is really tried.

Shapes: B batch, N tokens, D width, C channels of the latent, p patch size.
"""

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Attention, Mlp
from torch import nn

SIDE, P, C, DEPTH, CLASSES = 8, 2, 4, 3, 10
WIDTH, HEADS = 48, 4
Z, HIDDEN = 16, 24  # widths of the target and of a projector's inner layers
CLS = 16  # width of REG's class token
TEXT = 768
TEXT_DEPTH = 4  # REPA's MMDiT: its width is 32 x depth, in as many heads


def sincos(width, side, prefix=0):
    """MAE's table: the first half of the channels is the column, the second the row."""
    omega = 1 / 10_000 ** (np.arange(width // 4) / (width / 4))
    column, row = np.meshgrid(np.arange(side), np.arange(side))
    halves = [np.outer(axis.reshape(-1), omega) for axis in (column, row)]
    table = np.concatenate([f(h) for h in halves for f in (np.sin, np.cos)], 1)
    table = np.concatenate([np.zeros((prefix, width)), table])
    return torch.from_numpy(table).float()[None]


def modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def adaln(width, count):
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


def projector(width):
    layers = [nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Linear(HIDDEN, Z))


class Named(nn.Module):
    """A module that holds others under given names."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class TimeEmbedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        rates = torch.exp(-np.log(10_000) * torch.arange(128) / 128)
        angle = t[:, None].float() * rates
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1))


class Block(nn.Module):
    def __init__(self, width, heads, qk_norm):
        super().__init__()
        norm = {"qk_norm": qk_norm, "norm_layer": nn.LayerNorm}  # timm's default when they wrote
        self.attn = Attention(width, num_heads=heads, qkv_bias=True, **norm)
        gelu = lambda: nn.GELU(approximate="tanh")  # noqa: E731
        self.mlp = Mlp(width, 4 * width, act_layer=gelu)
        self.adaLN_modulation = adaln(width, 6)

    def forward(self, x, c):
        m = self.adaLN_modulation(c).chunk(6, -1)
        x = x + m[2][:, None] * self.attn(modulate(x, m[0], m[1]))
        return x + m[5][:, None] * self.mlp(modulate(x, m[3], m[4]))


class FinalLayer(nn.Module):
    def __init__(self, width, channels, cls=None):
        super().__init__()
        self.linear = nn.Linear(width, P * P * channels)
        if cls:
            self.linear_cls = nn.Linear(width, cls)
        self.adaLN_modulation = adaln(width, 2)


def unpatchify(patches):
    n, channels = SIDE // P, patches.shape[-1] // (P * P)
    out = patches.reshape(-1, n, n, P, P, channels)
    return torch.einsum("nhwpqc->nchpwq", out).reshape(-1, channels, SIDE, SIDE)


class Transformer(nn.Module):
    """SiT, DiT and the codes that are built on them. `t` is what the official code embeds."""

    def __init__(self, *, channels=C, heads=(), cls=None, qk_norm=False):
        super().__init__()
        self.x_embedder = PatchEmbed(SIDE, P, C, WIDTH, bias=True)
        self.t_embedder = TimeEmbedder(WIDTH)
        self.y_embedder = Named(embedding_table=nn.Embedding(CLASSES + 1, WIDTH))
        tokens = (SIDE // P) ** 2 + bool(cls)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, WIDTH), requires_grad=False)
        self.pos_embed.data.copy_(sincos(WIDTH, SIDE // P, prefix=int(bool(cls))))
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS, qk_norm) for _ in range(DEPTH))
        for name, head in heads:
            setattr(self, name, head)
        if cls:
            self.cls_projectors2 = nn.Linear(cls, WIDTH)
            self.wg_norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.final_layer = FinalLayer(WIDTH, channels, cls)

    def forward(self, x, t, y, cls=None):
        h = self.x_embedder(x)
        if cls is not None:
            h = torch.cat([self.wg_norm(self.cls_projectors2(cls))[:, None], h], 1)
        h = h + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder.embedding_table(y)
        for block in self.blocks:
            h = block(h, c)
        h = modulate(h, *self.final_layer.adaLN_modulation(c).chunk(2, -1))
        image = unpatchify(self.final_layer.linear(h if cls is None else h[:, 1:]))
        return image if cls is None else (image, self.final_layer.linear_cls(h[:, 0]))


class HalfAttention(nn.Module):
    def __init__(self, width, heads, last, qk_norm):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        if not last:
            self.proj = nn.Linear(width, width)
        if qk_norm:
            self.ln_q = nn.LayerNorm(width // heads, eps=1e-6)
            self.ln_k = nn.LayerNorm(width // heads, eps=1e-6)


class HalfBlock(nn.Module):
    def __init__(self, width, heads, last, qk_norm):
        super().__init__()
        self.attn = HalfAttention(width, heads, last, qk_norm)
        self.adaLN_modulation = adaln(width, 2 if last else 6)
        if not last:
            self.mlp = Mlp(width, 4 * width, act_layer=lambda: nn.GELU(approximate="tanh"))


class TextToImage(nn.Module):
    """REPA's MMDiT; its positions are a buffer."""

    def __init__(self, qk_norm=False):
        super().__init__()
        width, heads = 32 * TEXT_DEPTH, TEXT_DEPTH
        self.x_embedder = PatchEmbed(SIDE, P, C, width, bias=True)
        self.t_embedder = TimeEmbedder(width)
        self.context_embedder = nn.Linear(TEXT, width)
        self.register_buffer("pos_embed", sincos(width, SIDE // P))
        self.joint_blocks = nn.ModuleList(
            Named(
                context_block=HalfBlock(width, heads, i == TEXT_DEPTH - 1, qk_norm),
                x_block=HalfBlock(width, heads, False, qk_norm),
            )
            for i in range(TEXT_DEPTH)
        )
        self.final_layer = FinalLayer(width, C)
        self.projectors = nn.ModuleList([projector(width)])

    def forward(self, x, t, text):
        x = self.x_embedder(x) + self.pos_embed
        text, c = self.context_embedder(text), self.t_embedder(t)
        for block in self.joint_blocks:
            sides = [(block.context_block, text), (block.x_block, x)]
            packed, m = [], []
            for half, tokens in sides:
                last = not hasattr(half, "mlp")
                m.append(half.adaLN_modulation(c).chunk(2 if last else 6, -1))
                qkv = half.attn.qkv(modulate(tokens, m[-1][0], m[-1][1]))
                q, k, v = qkv.unflatten(-1, (3, TEXT_DEPTH, 32)).permute(2, 0, 3, 1, 4)
                if hasattr(half.attn, "ln_q"):
                    q, k = half.attn.ln_q(q), half.attn.ln_k(k)
                packed.append((q, k, v))
            q, k, v = (torch.cat(pair, 2) for pair in zip(*packed, strict=True))
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            parts = mixed.split([text.shape[1], x.shape[1]], 1)
            after = []
            for (half, tokens), mod, part in zip(sides, m, parts, strict=True):
                if len(mod) == 6:
                    tokens = tokens + mod[2][:, None] * half.attn.proj(part)
                    inner = half.mlp(modulate(tokens, mod[3], mod[4]))
                    tokens = tokens + mod[5][:, None] * inner
                after.append(tokens)
            text, x = after
        x = modulate(x, *self.final_layer.adaLN_modulation(c).chunk(2, -1))
        return unpatchify(self.final_layer.linear(x))


def sra_head():
    linear1, linear2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
    return [("ap_head", Named(linear1=linear1, linear2=linear2))]


def projectors(*modules):
    return [("projectors", nn.ModuleList(modules))]


def irepa(kind):
    head = {
        "conv": lambda: nn.Conv2d(WIDTH, Z, 3, padding=1),
        "linear": lambda: nn.Linear(WIDTH, Z),
        "mlp": lambda: projector(WIDTH),
    }[kind]()
    return projectors(Named(projection_layer=head))


OFFICIAL = {  # as each official code builds its network; SiT's training learns a variance
    "sit": lambda channels=2 * C, **o: Transformer(channels=channels, **o),
    "dit": lambda **o: Transformer(channels=2 * C, **o),
    "repa": lambda **o: Transformer(heads=projectors(projector(WIDTH)), **o),
    "irepa": lambda kind="conv", **o: Transformer(heads=irepa(kind), **o),
    "sra": lambda **o: Transformer(heads=sra_head(), **o),
    "sra-dit": lambda **o: Transformer(channels=2 * C, heads=sra_head(), **o),
    "reg": lambda **o: Transformer(heads=projectors(projector(WIDTH)), cls=CLS, **o),
    "repa-t2i": lambda **o: TextToImage(**o),
}


def official(layout, *, seed=0, **options):
    """A network of the layout with random weights; its positions are the fixed ones."""
    torch.manual_seed(seed)
    net = OFFICIAL[layout](**options).eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name != "pos_embed":
                p.normal_(std=0.1)
                if "norm" in name or "ln_" in name:
                    p.add_(name.endswith("weight"))
    return net
