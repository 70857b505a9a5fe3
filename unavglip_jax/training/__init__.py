"""Training: what is minimised, and the one loop that does it."""
