"""Downloads checkpoints from the Hugging Face hub, into the cache of `huggingface_hub`."""

import contextlib
import functools
import re
from pathlib import Path

from detr_jax.errors import MissingFileError
from detr_jax.weights.downloads import offline

FILES = ("model.safetensors", "pytorch_model.bin")
# What tells the model and the size of its images.
BESIDE = ("config.json", "preprocessor_config.json")

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@\S+)?")
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".json", ".yaml")


def is_repository(name: str) -> bool:
    """Whether a name may be a repository of the hub, with or without a revision: "owner/name@revision"."""
    return bool(_REPOSITORY.fullmatch(name)) and not name.endswith(_SUFFIXES)


@functools.cache  # the config and the tensors of a checkpoint are read one after the other
def fetch(name: str) -> Path:
    """Path of a repository's checkpoint in the cache of the hub, with `BESIDE` beside it.

    The hub is asked once for each file. If it does not answer, the cache serves.

    Args:
      name: "owner/name", or "owner/name@revision" with a branch, a tag or a commit.

    Raises:
      MissingFileError: There is no such repository or revision, it has none of `FILES`, or the hub cannot be
        reached and the cache lacks it.
    """
    from huggingface_hub import constants

    repository, _, revision = name.partition("@")
    if not (offline() or constants.HF_HUB_OFFLINE):
        return _ask(name, repository, revision or None)
    if file := _cached(repository, revision or None):
        return file
    raise MissingFileError(
        f"{name} is not a file, and the cache of the Hugging Face hub, {constants.HF_HUB_CACHE}, lacks it: "
        "unset HF_HUB_OFFLINE and DETR_JAX_OFFLINE to download it"
    )


def _ask(name: str, repository: str, revision: str | None) -> Path:
    """Asks the hub for a repository's checkpoint, and the cache if the hub does not answer."""
    from huggingface_hub import constants, errors

    where = f"the repository {repository} of the Hugging Face hub"
    login = "run: hf auth login"
    try:
        file = _download(repository, revision)
    except errors.GatedRepoError:
        raise MissingFileError(
            f"{where} needs a permission: ask for it at {constants.ENDPOINT}/{repository}, then {login}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise MissingFileError(
            f"{name} is not a file, and the Hugging Face hub has no repository {repository}, or it is "
            f"private: check the name, or {login}"
        ) from None
    except errors.RevisionNotFoundError:
        raise MissingFileError(f"{where} has no revision {revision}: name a branch, tag or commit") from None
    except errors.HFValidationError as error:
        raise MissingFileError(f"{name} is neither a file nor a repository: {_line(error)}") from None
    # Errors of httpx are not built-in ones; those of requests, which older versions of the hub use, are.
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # not exported
        if cached := _cached(repository, revision):
            return cached
        raise MissingFileError(
            f"{name} is not a file, and {constants.ENDPOINT} cannot be reached for {where}: {_line(error)}; "
            "try again later, or give the path of a file"
        ) from None
    if not file:
        raise MissingFileError(
            f"{where} has neither {' nor '.join(FILES)}: name a revision that has one "
            f"({repository}@refs/pr/1), or another repository"
        )
    return file


def _download(repository: str, revision: str | None) -> Path | None:
    """The first of `FILES` that a repository has."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError

    for file in FILES:
        address = huggingface_hub.hf_hub_url(repository, file, revision=revision)
        try:
            # This fails at once where hf_hub_download tries for a minute.
            huggingface_hub.get_hf_file_metadata(address, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            path = huggingface_hub.hf_hub_download(repository, file, revision=revision)
        except EntryNotFoundError:
            continue
        for beside in BESIDE:
            with contextlib.suppress(EntryNotFoundError):
                huggingface_hub.hf_hub_download(repository, beside, revision=revision)
        return Path(path)
    return None


def _cached(repository: str, revision: str | None) -> Path | None:
    """The first of `FILES` in the cache."""
    import huggingface_hub

    for file in FILES:
        path = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(path, str):  # not a note that the repository lacks it
            return Path(path)
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
