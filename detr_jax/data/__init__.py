"""Data sources, transforms and batches."""
