"""A study of Figure 4's evaluation: one crop, 144 crops and an ensemble."""
