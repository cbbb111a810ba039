"""The commands of `detr-jax`, grouped by what they work on. Each imports what it needs when it runs."""
