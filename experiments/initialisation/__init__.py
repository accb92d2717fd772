"""A study of accuracy by the scale of the initial weights, with and without BN."""
