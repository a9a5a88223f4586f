"""What happens on a client: local training and evaluation, in plain PyTorch without Flower."""
