"""Which statistics inference should use, and how near each comes to the truth."""
