"""Where parameters come from: published checkpoints, runs, random initialisation."""
