"""The two networks of the paper that introduced federated averaging, and logistic regression.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, section 3: for MNIST, 1,663,370 and 199,210 parameters.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedpw_flwr.lab.models.normalisation import Normalisation, normalisation_layer


class McMahanCNN(nn.Module):
    """Two 5x5 convolutions (32 and 64 channels), each with 2x2 max pooling, and 512 dense units.

    Images have `image_size` pixels a side, at least 4. Each convolution may be followed by a
    :func:`~fedpw_flwr.lab.models.normalisation.normalisation_layer`; the published ones are not.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: int = 28,
        normalisation: Normalisation = "none",
    ) -> None:
        super().__init__()
        normalised = normalisation_layer(normalisation)
        self.image_shape = (in_channels, image_size, image_size)
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 32, 5, padding=2),
            normalised(32),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            normalised(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64 * (image_size // 4) ** 2, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (B, in_channels, image_size, image_size) to logits."""
        _check_shape(x, self.image_shape)
        logits: Tensor = self.classifier(self.features(x))
        return logits


class _OfRows(nn.Module):
    """A network of `layers` that sees an image as one row of numbers."""

    layers: nn.Sequential

    def __init__(self, in_channels: int, image_size: int) -> None:
        super().__init__()
        self.image_shape = (in_channels, image_size, image_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, image_size, image_size) or rows (B, in_channels)."""
        _check_shape(x if x.ndim > 2 else x[..., None, None], self.image_shape)
        logits: Tensor = self.layers(x)
        return logits


class MLP(_OfRows):
    """Two hidden layers of `width` units with ReLU.

    For images of `image_size` pixels a side, or, of size 1, for rows of `in_channels` numbers.
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, image_size: int = 28, width: int = 200
    ) -> None:
        super().__init__(in_channels, image_size)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels * image_size**2, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, num_classes),
        )


class Logistic(_OfRows):
    """Multinomial logistic regression; forms of its input as :class:`MLP` takes them."""

    def __init__(self, num_classes: int, in_channels: int = 3, image_size: int = 28) -> None:
        super().__init__(in_channels, image_size)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes)
        )


def _check_shape(x: Tensor, wanted: tuple[int, int, int]) -> None:
    if tuple(x.shape[1:]) != wanted:
        raise ValueError(
            f"this network was built for images of shape {wanted}, got {tuple(x.shape[1:])}: set "
            "model.image_size to the data set's"
        )
