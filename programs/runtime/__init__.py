"""What nodes share: weights, stopping, checkpoints, records, processes."""
