"""What the ops mean: plain differentiable PyTorch that the paper can be checked against."""
