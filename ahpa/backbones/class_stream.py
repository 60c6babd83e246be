"""Transformers with a class stream: a vector, such as an encoder's class token, is noised and
denoised beside the image (REG, arXiv:2507.01467). REG uses SiT; DiT and MMDiT are our extension.

Must match REG's published layout (`cls_projectors2`, `wg_norm`, `final_layer.linear_cls`) and its
order of tokens.
"""

import torch
from torch import Tensor, nn

from ..registry import BACKBONES
from ..registry.contracts import Streams
from ..registry.validation import positive_int
from .base import PatchTransformer
from .layers import NORM_EPS, FinalLayer, modulate, parts
from .mmdit import MMDiT
from .sit import DiT, SiT


class FinalLayerWithClass(FinalLayer):
    """The final layer with a further output for token 0.

    Args:
        dim: Width D.
        out_features: Channels of an image token's output.
        width: Width of the class vector.
    """

    def __init__(self, dim: int, out_features: int, width: int) -> None:
        super().__init__(dim, out_features)
        self.linear_cls = nn.Linear(dim, width)

    def initialise(self) -> None:
        """Zero-initialise the weights of both outputs."""
        super().initialise()
        nn.init.zeros_(self.linear_cls.weight)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Map tokens [B, 1+N, D] to ([B, width], [B, N, out_features])."""
        shift, scale = parts(self.adaLN_modulation(c), 2)
        x = modulate(x, shift, scale)
        return self.linear_cls(x[:, 0]), self.linear(x[:, 1:])


class ClassStream(PatchTransformer):
    """Mixin before a transformer, whose constructor must call `add_class_stream`.

    Token 0 is the noised class vector after Linear and LayerNorm (eps 1e-6, as in REG's code),
    without a position. The streams are 'image' and 'cls', noised at the same t. For 'cls' the
    backbone predicts what it predicts for the image (the velocity, or on a discrete path the
    noise), without a variance.
    """

    def add_class_stream(self, class_width: int) -> None:
        """Add the layers of a class vector of this width, and initialise all weights again."""
        positive_int("class_width", class_width)
        width = self.hidden_size
        self.prefix = 1
        self.streams = {**self.streams, "cls": (class_width,)}
        self.cls_projectors2 = nn.Linear(class_width, width)
        self.wg_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.final_layer = FinalLayerWithClass(width, self.patch_features, class_width)
        self.initialise()

    def embed(self, x: Streams) -> Tensor:
        """Embed the streams as tokens [B, 1+N, D], the class vector first."""
        cls = self.wg_norm(self.cls_projectors2(x["cls"]))[:, None]
        return torch.cat([cls, super().embed(x)], dim=1)

    def predict(self, tokens: Tensor, cond: Tensor) -> Streams:
        """Map the last block's tokens [B, 1+N, D] to both predictions, float32."""
        cls, patches = self.final_layer(tokens, cond)
        return {"image": self.unpatchify(patches).float(), "cls": cls.float()}


@BACKBONES.register_module()
class ClassStreamSiT(ClassStream, SiT):
    """SiT whose token 0 is a noised class vector: the model of REG (arXiv:2507.01467).

    Args:
        class_width: Width of the class vector, such as an encoder's class token.

    The other arguments are those of `SiT`.
    """

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        depth: int,
        hidden_size: int,
        num_heads: int,
        class_width: int = 768,
        num_classes: int = 1000,
        patch_size: int = 2,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        gradient_checkpointing: bool = False,
        learn_sigma: bool = False,
        time_scale: float = 1.0,
        reversed_time: bool = False,
    ) -> None:
        super().__init__(
            input_size=input_size,
            in_channels=in_channels,
            depth=depth,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_classes=num_classes,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            qk_norm=qk_norm,
            gradient_checkpointing=gradient_checkpointing,
            learn_sigma=learn_sigma,
            time_scale=time_scale,
            reversed_time=reversed_time,
        )
        self.add_class_stream(class_width)


@BACKBONES.register_module()
class ClassStreamDiT(ClassStream, DiT):
    """DiT whose token 0 is a noised class vector, for which it predicts the noise alone.

    Args:
        class_width: Width of the class vector, such as an encoder's class token.

    The other arguments are those of `DiT`.
    """

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        depth: int,
        hidden_size: int,
        num_heads: int,
        class_width: int = 768,
        num_classes: int = 1000,
        patch_size: int = 2,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        gradient_checkpointing: bool = False,
        learn_sigma: bool = True,
        time_scale: float = 1000.0,
        reversed_time: bool = False,
    ) -> None:
        super().__init__(
            input_size=input_size,
            in_channels=in_channels,
            depth=depth,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_classes=num_classes,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            qk_norm=qk_norm,
            gradient_checkpointing=gradient_checkpointing,
            learn_sigma=learn_sigma,
            time_scale=time_scale,
            reversed_time=reversed_time,
        )
        self.add_class_stream(class_width)


@BACKBONES.register_module()
class ClassStreamMMDiT(ClassStream, MMDiT):
    """MMDiT whose first image token is a noised class vector.

    Args:
        class_width: Width of the class vector, such as an encoder's class token.

    The other arguments are those of `MMDiT`.
    """

    def __init__(
        self,
        *,
        input_size: int,
        in_channels: int,
        class_width: int = 768,
        depth: int = 24,
        hidden_size: int = 768,
        num_heads: int = 24,
        patch_size: int = 2,
        mlp_ratio: float = 4.0,
        text_dim: int = 768,
        pooled_dim: int | None = None,
        qk_norm: bool = False,
        adaln_zero: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            input_size=input_size,
            in_channels=in_channels,
            depth=depth,
            hidden_size=hidden_size,
            num_heads=num_heads,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            text_dim=text_dim,
            pooled_dim=pooled_dim,
            qk_norm=qk_norm,
            adaln_zero=adaln_zero,
            gradient_checkpointing=gradient_checkpointing,
        )
        self.add_class_stream(class_width)
