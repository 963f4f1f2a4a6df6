"""The users of the test Hub, one for each token; knows no repos and no requests."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class User:
    """A token: whose it is, which gated and private repos it reads, whether it writes its own."""

    token: str
    name: str
    reads: set[str] = field(default_factory=set)
    writes: bool = True
    expired: bool = False

    def owns(self, id: str) -> bool:
        return id.split("/")[0] == self.name

    def may_read(self, id: str) -> bool:
        return id in self.reads or self.owns(id)
