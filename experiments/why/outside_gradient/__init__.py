"""A study of normalisation outside the gradient."""
