"""The ResNet for CIFAR-10 of He et al. (arXiv:1512.03385, section 4.2). Its weights have the names
of Y. Idelbayev's repository (akamaster/pytorch_resnet_cifar10, BSD-2)."""

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)
MEAN = (0.485, 0.456, 0.406)  # ImageNet's: the networks were trained with them
STD = (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut without weights (option A of the paper).

    Args:
        inputs: Channels of the input.
        width: Channels of the output.
        stride: 2 where the map is halved, else 1.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.missing = width - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, width, H / stride, W / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        half = self.missing // 2
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, half, self.missing - half)))


class CifarResNet(nn.Module):
    """A ResNet of 6 n + 2 layers.

    Args:
        blocks: Number n of blocks of each width; 9 for ResNet-56.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        inputs = WIDTHS[0]
        for number, width in enumerate(WIDTHS, 1):
            stage = []
            for i in range(blocks):
                stage.append(Block(inputs, width, 2 if i == 0 and number > 1 else 1))
                inputs = width
            self.add_module(f"layer{number}", nn.Sequential(*stage))
        self.linear = nn.Linear(inputs, 10)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the output of each width, [B, 16, H, W] to [B, 64, H / 4, W / 4]."""
        x = F.relu(self.bn1(self.conv1(x)))
        found = []
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return the features [B, 64] before the classifier, of images [B, 3, 32, 32]."""
        return self.maps(x)[-1].mean((2, 3))
