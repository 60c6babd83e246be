"""SiT with a second stream: a vector, such as an encoder's class token, is noised and denoised beside the image (REG).

Must match: REG's published layout (`cls_projectors2`, `wg_norm`, `final_layer.linear_cls`) and token order.
"""

import torch
from torch import Tensor, nn

from ..registry import BACKBONES
from ..registry.contracts import Streams
from .layers import FinalLayer, modulate
from .sit import SiT


class FinalLayerWithClass(FinalLayer):
    """The final layer with one more linear layer, for the first token: [B, 1+N, D] -> ([B, width], [B, N, p*p*C])."""

    def __init__(self, dim: int, out_features: int, width: int):
        super().__init__(dim, out_features)
        self.linear_cls = nn.Linear(dim, width)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        x = modulate(x, shift, scale)
        return self.linear_cls(x[:, 0]), self.linear(x[:, 1:])


@BACKBONES.register_module()
class ClassStreamSiT(SiT):
    """SiT whose token 0 is a noised class vector of `class_width` numbers: Linear, LayerNorm, no position (REG).

    The streams are 'image' and 'cls', both noised at the same t; every other option is SiT's. Its prediction for 'cls' is
    that vector's velocity.
    """

    demo = {**SiT.demo, "class_width": 192}  # of the bundled encoder

    def __init__(self, *, class_width: int = 768, **options):
        super().__init__(**options)
        self._check_positive(class_width=class_width)
        self.prefix = 1
        self.streams = {**self.streams, "cls": (class_width,)}
        self.cls_projectors2 = nn.Linear(class_width, self.hidden_size)
        self.wg_norm = nn.LayerNorm(self.hidden_size)
        self.final_layer = FinalLayerWithClass(self.hidden_size, self.final_layer.linear.out_features, class_width)
        self._initialise()

    def _initialise(self):
        super()._initialise()
        if hasattr(self.final_layer, "linear_cls"):  # not yet while SiT's own constructor runs
            nn.init.zeros_(self.final_layer.linear_cls.weight)

    def embed(self, x: Streams) -> Tensor:
        cls = self.wg_norm(self.cls_projectors2(x["cls"]))[:, None]  # [B, 1, D]; its row of the table is zero
        return torch.cat([cls, super().embed(x)], dim=1)

    def predict(self, h: Tensor, c: Tensor) -> Streams:
        cls, patches = self.final_layer(h, c)
        return {"image": self.unpatchify(patches).float(), "cls": cls.float()}
