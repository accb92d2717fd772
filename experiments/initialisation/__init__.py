"""Accuracy against the scale of the initial weights, with and without BN."""
