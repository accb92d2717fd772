"""How many training steps Batch Normalization saves: the paper's Figures 2 and 3."""
