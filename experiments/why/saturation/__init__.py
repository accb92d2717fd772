"""A study of saturated units and vanishing gradients, layer by layer."""
