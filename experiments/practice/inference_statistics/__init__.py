"""A study of the statistics for inference and of their distance to the truth."""
