"""Accuracy and divergence against the learning rate, with and without BN."""
