"""A study of the scales of input features: the steps that they cost, and BN."""
