"""Training: the objective, the loop, and the checkpoints."""
