"""Scales of input features: how many steps they cost, and what BN makes of them."""
