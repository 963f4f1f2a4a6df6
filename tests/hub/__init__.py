"""A small Hugging Face Hub on 127.0.0.1 for tests, spoken to by the real client.

    with LocalHub() as hub:
        hub.add("org/name", folder, gated=True)      # its files become the branch main
        hub.user("hf_alice", reads=["org/name"])     # a token, and what it may read
        hub.fault("GET /cdn/", "reset", after=1000, times=1)
        ...                                          # hub.url, hub.log

Knows what the real Hub answers to the calls that are tested: reading, searching, publishing,
signing in (login.py says how to start an app for it) and jobs (jobs.py). It has no Xet and no
pages.
"""

from .server import LocalHub

__all__ = ["LocalHub"]
