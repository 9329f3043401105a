"""Data sets that the package `datasets` reads: from its cache, from the hub, or from a local copy of a repository."""

from typing import Any

from sqbench import planning
from sqbench.errors import UserError


def split_of(place: str, subset: str | None, split: str, *, key: str, instead: str) -> Any:
    """One split of a data set.

    Args:
        place: a name on the hub, or a local folder.
        subset: its configuration. None if it has only one.
        key: the key and the value that ask for it, for messages.
        instead: what would do without a network, for messages.

    Raises:
        UserError: it is neither in the cache nor on the hub, or it has no such subset or split.
        planning.Absent: a plan is being made, and it would be downloaded.
    """
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    try:
        datasets.config.HF_HUB_OFFLINE = offline or planning.active()
        return datasets.load_dataset(place, subset, split=split)
    except (OSError, ValueError) as error:
        if not offline:
            planning.before("its data are downloaded first")
        reason, _, _ = str(error).partition("\n")  # of an unknown subset or split, it lists those that there are
        raise UserError(
            f"{key}: not in the datasets cache (HF_HOME) and the hub cannot be reached; {instead} ({reason})"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
