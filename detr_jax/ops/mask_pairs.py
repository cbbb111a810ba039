"""Lists of (image, query) pairs for the mask head, in a few static lengths."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

# Pairs per image; 100 is every query of the published models.
LENGTHS = (8, 16, 32, 64, 100)


def padded_length(needed: int, images: int, lengths: Sequence[int] = LENGTHS) -> int:
    """The smallest static list that holds what is needed.

    Args:
      needed: number of pairs.
      images: that the list is for.
      lengths: static numbers of pairs per image; beyond the largest, a list is as long as needed.
    """
    return next((length * images for length in sorted(lengths) if length * images >= needed), needed)


def pairs_of_assignment(assignment: Int32[np.ndarray, "batch targets"]) -> Int32[np.ndarray, "pairs 3"]:
    """(image, query, target) of every match.

    Args:
      assignment: query of each target, -1 for none.
    """
    image, target = np.nonzero(assignment >= 0)
    return np.stack([image, assignment[image, target], target], axis=1).astype(np.int32)


def sample_pairs(
    pairs: Int32[np.ndarray, "pairs 3"], per_image: int, seeds: Sequence[Sequence[int]]
) -> Int32[np.ndarray, "sampled 3"]:
    """At most so many pairs of every image, each as likely as the others, in their order.

    Args:
      pairs: image, query, target.
      per_image: the most of one image; 0 for all.
      seeds: for every image, so that its choice does not depend on the others.
    """
    if not per_image or not len(pairs):
        return pairs
    chosen = [
        np.random.default_rng(seeds[image]).permutation(np.flatnonzero(pairs[:, 0] == image))[:per_image]
        for image in np.unique(pairs[:, 0])
    ]
    return pairs[np.sort(np.concatenate(chosen))]


def query_pairs(queries: Sequence[Int[np.ndarray, " _"]]) -> Int32[np.ndarray, "pairs 2"]:
    """(image, query) of chosen queries, image by image."""
    image = np.repeat(np.arange(len(queries)), [len(chosen) for chosen in queries])
    return np.stack([image, np.concatenate(queries)], axis=1).astype(np.int32)


def pad_pairs(
    pairs: Int32[np.ndarray, "pairs columns"], length: int
) -> Int32[np.ndarray, "{length} columns"]:
    """Pads a list with the first query of the first image, and no target (-1)."""
    padding = np.array([0, 0, -1], np.int32)[: pairs.shape[1]]
    return np.concatenate([pairs, np.tile(padding, (length - len(pairs), 1))])
