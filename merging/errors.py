"""The one error that users may read; it knows nothing of pages, terminals or tensors."""


class MergeError(Exception):
    """Something the user can mend. The text is shown as it stands: what is wrong, then what to do.

    Raised anywhere below the page and the CLI, turned into their form once, at the edge.
    Any other exception is a bug.
    """


class AccessError(MergeError):
    """A model that is there, perhaps, and not for this user: gated, private, or a login too old."""


class StalledError(MergeError):
    """What is in the way now need not be later: a full disk. The same merge goes on from there."""
