"""OpenVLA checkpoints (Kim et al., 2024, arXiv:2406.09246) as policies, by a network of our own."""
