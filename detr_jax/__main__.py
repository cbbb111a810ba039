"""The command line of an installed package: `detr-jax` and `python -m detr_jax`."""
