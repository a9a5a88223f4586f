"""A small convolutional network: for quick trials, and where BatchNorm would mislead."""

from __future__ import annotations

from torch import Tensor, nn

from fedpw_flwr.lab.models.normalisation import Normalisation, normalisation_layer


class SmallCNN(nn.Module):
    """Two 3x3 convolutions with pooling, and two linear layers; for images of any size.

    The first convolution has `width` channels, the second twice as many. Each may be followed by a
    :func:`~fedpw_flwr.lab.models.normalisation.normalisation_layer`.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 32,
        normalisation: Normalisation = "none",
    ) -> None:
        super().__init__()
        normalised = normalisation_layer(normalisation)
        layers = [
            nn.Conv2d(in_channels, width, 3, padding=1),
            normalised(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            normalised(2 * width),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        ]
        # Left out, not passed through: weights keep the numbers in their names.
        self.features = nn.Sequential(*(x for x in layers if not isinstance(x, nn.Identity)))
        self.classifier = nn.Sequential(
            nn.Linear(2 * width * 16, 4 * width),
            nn.ReLU(inplace=True),
            nn.Linear(4 * width, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, in_channels, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits
