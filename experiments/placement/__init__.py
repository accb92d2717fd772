"""Where Batch Normalization stands best in a network."""
