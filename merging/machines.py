"""The machines that a Space can have, and the smallest of them that would do for some models.

Sizes and prices are the Hub's documentation's, read in August 2026; nothing is asked of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from merging.memory import SHARE, Size, ways


@dataclass(frozen=True)
class Machine:
    """By its flavor; memory, and that of its GPU if it has one, in bytes; dollars an hour."""

    name: str
    memory: int
    gpu: int
    hourly: float

    @property
    def room(self) -> int:
        """Bytes for weights on the device."""
        return int(SHARE * (self.gpu or self.memory))

    @property
    def spare(self) -> int:
        """Bytes for weights in memory beside a GPU."""
        return int(SHARE * self.memory) if self.gpu else 0

    def __str__(self) -> str:
        kind = f"{self.gpu / 1e9:.0f} GB GPU" if self.gpu else f"{self.memory / 1e9:.0f} GB"
        return f"`{self.name}` ({kind}, ${self.hourly:.2f} an hour)"


MACHINES = tuple(
    Machine(name, memory * 10**9, gpu * 10**9, hourly)
    for name, memory, gpu, hourly in (
        ("cpu-basic", 16, 0, 0.0), ("cpu-upgrade", 32, 0, 0.03), ("t4-small", 15, 16, 0.40),
        ("t4-medium", 30, 16, 0.60), ("l4x1", 30, 24, 0.80), ("l40sx1", 62, 48, 1.80),
        ("a100-large", 142, 80, 2.50),
    )
)  # fmt: skip
"""A Space's machines, from cheap to dear; none of several GPUs, since models are held on one."""


def smallest(merges: Sequence[Size], parents: Sequence[Size]) -> Machine | None:
    """The cheapest machine on which all these can answer, in whatever way."""
    return next((m for m in MACHINES if ways(merges, parents, m.room, m.spare)), None)


def advice(merges: Sequence[Size], parents: Sequence[Size]) -> str:
    """What to do where these have no room."""
    machine = smallest(merges, parents)
    if machine is None:
        return "choose smaller models: no single machine of a Space holds these"
    return f"choose smaller models, or a machine with more memory: of a Space's {machine} would do"
