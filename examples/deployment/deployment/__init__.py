"""deployment: A Flower / PyTorch app."""
