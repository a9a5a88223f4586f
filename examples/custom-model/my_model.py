"""A network of one's own: any nn.Module that takes num_classes and in_channels."""

from torch import Tensor, nn


class SeparableNet(nn.Module):
    """Depthwise separable convolutions with GroupNorm, which keeps no statistics of a domain.

    Parameters
    ----------
    num_classes : int
        Number of logits.
    in_channels : int
        Channels of the images.
    width : int
        Channels of the first block, a multiple of 8; the second has twice as many.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1),
            *_block(width, width),
            nn.MaxPool2d(2),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 2 * width),
        )
        self.classifier = nn.Linear(2 * width * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, 16, 16) to logits (B, num_classes)."""
        return self.classifier(self.features(x).flatten(1))


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.GroupNorm(8, outputs),
        nn.ReLU(),
    ]
