"""torchvision's ResNet-18, untrained, for any number of channels and classes.

The ImageNet network as it is: its 7x7 stem and max pooling shrink an image to a quarter before
the first block. :class:`fedpw_flwr.lab.models.resnet.ResNet` keeps more of images of 32 pixels.
"""

from __future__ import annotations

from torch import nn

from fedpw_flwr.lab.models.normalisation import Normalisation, normalisation_layer


def torchvision_resnet18(
    num_classes: int, in_channels: int = 3, normalisation: Normalisation = "batch"
) -> nn.Module:
    """Build ``torchvision.models.resnet18`` without weights.

    Unlike in our own networks, convolutions have no bias even where no normalisation follows. For
    other than three channels, the first convolution is initialised as torchvision's own is.
    """
    # Takes seconds to import: only who chooses this network pays for it.
    from torchvision.models import resnet18

    network: nn.Module = resnet18(
        weights=None, num_classes=num_classes, norm_layer=normalisation_layer(normalisation)
    )
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
