"""A study of accuracy by batch size, with three normalisations."""
