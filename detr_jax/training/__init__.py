"""Matching, losses, optimizer, train step, checkpoints, and the training loop."""
