"""What the Hugging Face Hub holds: finds models, pins them at a commit, downloads and publishes.

Knows names, files, access and the shared cache; nothing of tensors, recipes or pages. The only
place that imports huggingface_hub.
"""

from merging.hub.cache import disk
from merging.hub.client import Token, own_login
from merging.hub.download import (
    Fetched,
    cached,
    download,
    missing,
    read_range,
    small_files,
    weights,
)
from merging.hub.keeping import Kept, clean, kept_state, room, using
from merging.hub.pinning import pin
from merging.hub.repo import File, Repo
from merging.hub.search import Found, Lineage, lineage, search

__all__ = [
    "Fetched",
    "File",
    "Found",
    "Kept",
    "Lineage",
    "Repo",
    "Token",
    "cached",
    "clean",
    "disk",
    "download",
    "kept_state",
    "lineage",
    "missing",
    "own_login",
    "pin",
    "read_range",
    "room",
    "search",
    "small_files",
    "using",
    "weights",
]
