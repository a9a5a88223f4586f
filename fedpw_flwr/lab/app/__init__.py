"""What `flwr run` starts: the ServerApp and the ClientApp of the experiments."""
