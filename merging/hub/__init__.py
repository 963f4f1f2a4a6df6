"""What the Hugging Face Hub holds: finds models, pins them at a commit, downloads and publishes.

Knows names, files, access and the shared cache; nothing of tensors, recipes or pages. The only
place that imports huggingface_hub.
"""

from merging.hub.cache import free_disk
from merging.hub.client import Token, own_login
from merging.hub.download import Fetched, cached, download, read_range, small_files, weights
from merging.hub.pinning import pin
from merging.hub.repo import File, Repo

__all__ = [
    "Fetched",
    "File",
    "Repo",
    "Token",
    "cached",
    "download",
    "free_disk",
    "own_login",
    "pin",
    "read_range",
    "small_files",
    "weights",
]
