"""ResNet-10 for small pictures, the paper's network for digits, in any width.

Unlike the ImageNet ResNets it keeps the resolution at the entrance (a 3x3 stem, no pooling),
because digits are 16 to 32 pixels wide. At width 64 with 10 classes it has 4,903,242 parameters;
they grow with the square of the width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to a shortcut (1x1 where the shape changes).

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and the output.
    stride : int
        The first convolution's and the shortcut's.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        inner = relu(self.bn1(self.conv1(x)), inplace=True)
        # Every stride-th pixel into a plain 1x1 convolution equals a strided one, whose gradient in
        # torch 2.15 overwrites foreign memory (CPU, channels last, < 16 channels, several threads).
        # Pooling over one pixel picks them; unlike a slice, its gradient keeps the memory format,
        # without which all that follows in the backward pass runs on mixed formats, slowly.
        seen = x if self.stride == 1 else avg_pool2d(x, kernel_size=1, stride=self.stride)
        return relu(self.bn2(self.conv2(inner)) + self.shortcut(seen), inplace=True)


class ResNet10(nn.Module):
    """A stem, four stages of one block, average pooling over the picture, and a linear layer.

    The stages have 1, 2, 4 and 8 times the width, and all but the first halve the resolution.

    Parameters
    ----------
    num_classes : int
        Number of logits.
    in_channels : int, default 3
        Channels of the pictures.
    width : int, default 64
        Channels of the stem and the first stage; the paper's is 64.

    Raises
    ------
    ValueError
        If `width` is less than 1.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            BasicBlock(width, width, stride=1),
            BasicBlock(width, 2 * width, stride=2),
            BasicBlock(2 * width, 4 * width, stride=2),
            BasicBlock(4 * width, 8 * width, stride=2),
        )
        self.classifier = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised pictures (B, in_channels, H, W) to logits (B, num_classes)."""
        if x.device.type == "cpu":
            # Convolutions on a CPU are faster in this layout; weights keep theirs.
            x = x.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.stages(relu(self.bn(self.stem(x)), inplace=True))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits
