"""Lists of the (image, query) pairs for which the mask head predicts masks.

Lists are padded to a few static lengths, so that only a few programs are compiled.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32


def padded_length(needed: int, images: int, lengths: Sequence[int]) -> int:
    """Returns the smallest static length that is at least `needed`.

    Args:
      needed: Number of pairs.
      images: Number of images in the batch.
      lengths: Static numbers of pairs per image. If even the largest is too small, the result is `needed`.
    """
    return next((length * images for length in sorted(lengths) if length * images >= needed), needed)


def pairs_of_assignment(assignment: Int32[np.ndarray, "batch targets"]) -> Int32[np.ndarray, "pairs 3"]:
    """Returns (image, query, target) of every matched target, image by image.

    Args:
      assignment: Query matched to each target, -1 where there is none.
    """
    image, target = np.nonzero(assignment >= 0)
    return np.stack([image, assignment[image, target], target], axis=1).astype(np.int32)


def sample_pairs(
    pairs: Int32[np.ndarray, "pairs 3"], per_image: int, seeds: Sequence[Sequence[int]]
) -> Int32[np.ndarray, "sampled 3"]:
    """Returns a uniform random subset of at most `per_image` pairs per image, in order.

    Args:
      pairs: Image, query and target of each pair.
      per_image: Maximum number of pairs per image; 0 keeps all.
      seeds: Random seed of each image. The sample of an image does not depend on the rest of the batch.
    """
    if not per_image or not len(pairs):
        return pairs
    chosen = [
        np.random.default_rng(seeds[image]).permutation(np.flatnonzero(pairs[:, 0] == image))[:per_image]
        for image in np.unique(pairs[:, 0])
    ]
    return pairs[np.sort(np.concatenate(chosen))]


def query_pairs(queries: Sequence[Int[np.ndarray, " _"]]) -> Int32[np.ndarray, "pairs 2"]:
    """Returns (image, query) of the selected queries, image by image.

    Args:
      queries: Indices of the selected queries of each image.
    """
    image = np.repeat(np.arange(len(queries)), [len(selected) for selected in queries])
    return np.stack([image, np.concatenate(queries)], axis=1).astype(np.int32)


def pad_pairs(
    pairs: Int32[np.ndarray, "pairs columns"], length: int
) -> Int32[np.ndarray, "{length} columns"]:
    """Pads a list of pairs to `length` with image 0, query 0 and, where there is one, target -1."""
    padding = np.array([0, 0, -1], np.int32)[: pairs.shape[1]]
    return np.concatenate([pairs, np.tile(padding, (length - len(pairs), 1))])
