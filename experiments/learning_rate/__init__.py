"""A study of accuracy and divergence by learning rate, with and without BN."""
