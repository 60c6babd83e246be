"""A second stream for every transformer: a vector, such as an encoder's class token, is noised and denoised beside the
image (REG). On SiT that is REG's own model; DiT and MMDiT have it the same way [inferred: REG is on SiT alone].

Must match: REG's published layout (`cls_projectors2`, `wg_norm`, `final_layer.linear_cls`) and token order.
"""

import torch
from torch import Tensor, nn

from ..registry import BACKBONES
from ..registry.contracts import Streams
from .base import PatchTransformer, check_positive
from .layers import FinalLayer, modulate, parts
from .mmdit import MMDiT
from .sit import DiT, SiT


class FinalLayerWithClass(FinalLayer):
    """The final layer with one more linear layer, for the first token: [B, 1+N, D] -> ([B, width], [B, N, p*p*C])."""

    def __init__(self, dim: int, out_features: int, width: int):
        super().__init__(dim, out_features)
        self.linear_cls = nn.Linear(dim, width)

    def zero(self) -> None:
        super().zero()
        nn.init.zeros_(self.linear_cls.weight)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = parts(self.adaLN_modulation(c), 2)
        x = modulate(x, shift, scale)
        return self.linear_cls(x[:, 0]), self.linear(x[:, 1:])


class ClassStream(PatchTransformer):
    """Mixin before a transformer: token 0 is a noised class vector of `class_width` numbers: Linear, LayerNorm, and no
    position (its row of the table is zero). The streams are 'image' and 'cls', both noised at the same t; every other
    option is the transformer's. What is predicted of 'cls' is what is predicted of the image: the velocity, or on a
    discrete path the noise, without a variance of its own.
    """

    small = {"class_width": 192}  # of the bundled encoder

    def __init__(self, *, class_width: int = 768, **options):
        super().__init__(**options)
        check_positive(class_width=class_width)
        self.prefix = 1
        self.streams = {**self.streams, "cls": (class_width,)}
        self.cls_projectors2 = nn.Linear(class_width, self.hidden_size)
        self.wg_norm = nn.LayerNorm(self.hidden_size)
        self.final_layer = FinalLayerWithClass(self.hidden_size, self.patch_features, class_width)
        self._initialise()

    def embed(self, x: Streams) -> Tensor:
        cls = self.wg_norm(self.cls_projectors2(x["cls"]))[:, None]  # [B, 1, D]
        return torch.cat([cls, super().embed(x)], dim=1)

    def predict(self, h: Tensor, c: Tensor) -> Streams:
        cls, patches = self.final_layer(h, c)
        return {"image": self.unpatchify(patches).float(), "cls": cls.float()}


@BACKBONES.register_module()
class ClassStreamSiT(ClassStream, SiT):
    """SiT whose token 0 is a noised class vector of `class_width` numbers (REG). Options: SiT's."""

    demo = {**SiT.demo, **ClassStream.small}


@BACKBONES.register_module()
class ClassStreamDiT(ClassStream, DiT):
    """DiT whose token 0 is a noised class vector of `class_width` numbers, whose noise it predicts. Options: DiT's."""

    demo = {**DiT.demo, **ClassStream.small}


@BACKBONES.register_module()
class ClassStreamMMDiT(ClassStream, MMDiT):
    """MMDiT whose first image token is a noised class vector of `class_width` numbers. Options: MMDiT's."""

    demo = {**MMDiT.demo, **ClassStream.small}
