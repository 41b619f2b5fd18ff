"""Which kind of checkpoint a path is: by what lies there, and never by opening what may run something."""

import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, listed
from .contents import Folder, opened_folder
from .dist import dist, flex, flex_parts, is_metadata, one_metadata
from .ranks import is_state, ranks
from .unified import INDEX, MODELS, one_index, unified

NAMED = "a Unified Checkpoint, a flex checkpoint, a dist checkpoint or the .pdopt of every rank"


def found(path: Any) -> Folder | None:
    """The checkpoint that a path means, if it is not one file that holds all; CheckpointError if unclear."""
    if not isinstance(path, str | Path) and not hasattr(path, "__fspath__"):
        return None
    path = Path(path)
    try:
        is_folder = path.is_dir()
    except OSError:  # whoever opens it says why not
        return None
    if is_folder:
        with opened_folder(path):
            return _in_folder(path)
    if path.name.endswith(INDEX) and path.is_file():
        return one_index(path)
    return one_metadata(path) if is_metadata(path) and path.is_file() else None


def is_one(path: Any) -> bool:
    """Whether a path is such a checkpoint by its name."""
    return Path(path).is_dir() or str(path).endswith(INDEX) or is_metadata(Path(path))


def _in_folder(path: Path) -> Folder:
    """The one kind of checkpoint that lies in a folder."""
    names = sorted(p.name for p in path.iterdir())
    kinds = {
        "a flex checkpoint": bool(flex_parts(path)),
        "a Unified Checkpoint": any(
            n.endswith(INDEX) or n.endswith(".safetensors") and n.startswith((*MODELS, "optimizer"))
            for n in names
        ),
        "a dist checkpoint": any(is_metadata(path / n) for n in names),
        "the .pdopt of every rank": any(map(is_state, names)),
    }
    there = [kind for kind, is_there in kinds.items() if is_there]
    if len(there) > 1:
        instead = "give the index.json, the .metadata or the file that you mean"
        raise CheckpointError(f"{path}: found {' and '.join(there)} in it, expected one; {instead}")
    if there:
        return (flex, unified, dist, ranks)[list(kinds).index(there[0])](path)
    steps = {int(m[1]): m[0] for m in (re.fullmatch(r"checkpoint-(\d{1,18})", n) for n in names) if m}
    if steps:
        last = path / steps[max(steps)]
        raise CheckpointError(
            f"{path}: found a folder of checkpoints ({len(steps)}), expected one of them; the last is {last}"
        )
    if ".metadata" in names:
        raise CheckpointError(f"{path}: it is a distributed checkpoint of PyTorch, expected {NAMED}")
    raise CheckpointError(f"{path}: found {listed(names) or 'nothing'} in the folder, expected {NAMED}")
