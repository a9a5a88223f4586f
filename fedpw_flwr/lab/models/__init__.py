"""Networks, one file each.

**To add a model**, write one module with an ``nn.Module`` whose constructor accepts ``num_classes``
and ``in_channels`` by keyword and whose ``forward`` maps normalised images (B, in_channels, H, W),
or rows of a table (B, in_channels), to logits (B, num_classes), and one file
``conf/model/NAME.yaml``::

    _target_: your_package.your_module.YourNetwork
    your_option: 1

and run ``fedpw model=NAME``. A network that must know the size of the images takes it from
``${dataset.image_size}``. The caller seeds torch before it builds the network, so a plain
initialisation is reproducible.
"""
