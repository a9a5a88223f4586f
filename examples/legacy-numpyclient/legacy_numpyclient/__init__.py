"""legacy-numpyclient: A Flower / PyTorch app."""
