"""Normalisation that the gradient does not see."""
