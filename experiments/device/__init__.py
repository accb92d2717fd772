"""Study: what a training step takes on the GPU that is here, by the clock."""
