"""A study that times training steps on a GPU."""
