"""ResNets for small images: the paper's ResNet-10 and its deeper siblings, in any width.

Unlike the ImageNet ResNets they keep the resolution at the entrance (a 3x3 stem, no pooling),
because digits are 16 to 32 pixels wide. ResNet-10 of width 64 with 10 classes is the paper's
network for digits: 4,903,242 parameters; they grow with the square of the width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from fedpw_flwr.lab.models.normalisation import Normalisation, normalisation_layer

BLOCKS = {
    10: (1, 1, 1, 1),
    12: (2, 1, 1, 1),
    18: (2, 2, 2, 2),
    20: (3, 2, 2, 2),
    34: (3, 4, 6, 3),
}
"""Blocks a stage by depth, which counts two layers a block, the stem and the classifier.

10, 18 and 34 are as in He et al. (2016) or its plain reduction; 12 and 20 put the block that 10 and
18 lack into the first stage, where it has fewest parameters and sees most pixels.
"""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each normalised, added to a shortcut (1x1 where the shape changes).

    The first convolution and the shortcut have the `stride`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        normalisation: Normalisation = "batch",
    ) -> None:
        super().__init__()
        normalised = normalisation_layer(normalisation)
        bias = normalisation == "none"
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.bn1 = normalised(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.bn2 = normalised(out_channels)
        self.stride = stride
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=bias),
                normalised(out_channels),
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


class ResNet(nn.Module):
    """A stem, four stages of blocks, average pooling over the image, and a linear layer.

    The stages have 1, 2, 4 and 8 times `width` channels (the paper's is 64), and all but the first
    halve the resolution. `depth` is one of :data:`BLOCKS`. Without `normalisation`, convolutions
    have a bias and learn more slowly.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        *,
        depth: int = 18,
        normalisation: Normalisation = "batch",
    ) -> None:
        super().__init__()
        normalised = normalisation_layer(normalisation)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=normalisation == "none")
        self.bn = normalised(width)
        blocks = []
        channels = width
        for stage, count in enumerate(BLOCKS[depth]):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(channels, width * 2**stage, stride, normalisation))
                channels = width * 2**stage
        self.stages = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, in_channels, H, W) to logits (B, num_classes)."""
        if x.device.type == "cpu":
            # Convolutions on a CPU are faster in this layout; weights keep theirs.
            x = x.contiguous(memory_format=torch.channels_last)
        features: Tensor = self.stages(relu(self.bn(self.stem(x)), inplace=True))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class ResNet10(ResNet):
    """The paper's network for digits: a :class:`ResNet` of depth 10."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        normalisation: Normalisation = "batch",
    ) -> None:
        super().__init__(num_classes, in_channels, width, depth=10, normalisation=normalisation)
