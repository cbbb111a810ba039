"""Datasets, augmentation and batches, in NumPy on the host."""
