"""The evaluation of Figure 4: one crop, 144 crops, an ensemble of six networks."""
