"""Training steps compiled for accelerators that are not here; nothing runs."""
