"""Reads, writes and initialises model parameters."""
