"""Training: settings, batches, steps, checkpoints, teachers, distribution."""
