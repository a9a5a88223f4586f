"""compose: A Flower / PyTorch app."""
