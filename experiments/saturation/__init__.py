"""Saturated units and vanishing gradients, layer by layer."""
