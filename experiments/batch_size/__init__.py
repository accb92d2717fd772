"""How accuracy depends on the batch size, with three normalisations."""
