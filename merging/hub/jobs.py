"""Hugging Face Jobs: a machine for one command, on the user's own account and bill.

It knows commands, stages, log lines and hardware; nothing of merges, nor of what a job is to do.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import logging

from merging.errors import AccessError, MergeError
from merging.hub.client import (
    ATTEMPTS,
    LimitError,
    Token,
    UnreachableError,
    api,
    patiently,
    plainly,
)

T = TypeVar("T")

OVER = ("COMPLETED", "CANCELED", "ERROR", "DELETED")
MARK = "merging"
"""The label by which a job is found whose number never arrived, or is not known here."""
AGAIN = 5  # seconds before a log that broke off is asked for again
UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Machine:
    """One kind of hardware; memory and disk in bytes, dollars an hour, 0 where nobody tells."""

    name: str
    cores: str = ""
    memory: int = 0
    disk: int = 0
    hourly: float = 0.0
    gpu: bool = False


KNOWN = (
    Machine("cpu-basic", "2 vCPU", 16 * 10**9, 50 * 10**9, 0.01),
    Machine("cpu-upgrade", "8 vCPU", 32 * 10**9, 50 * 10**9, 0.03),
    Machine("cpu-xl", "16 vCPU", 124 * 10**9, 1000 * 10**9, 1.00),
    Machine("cpu-performance", "32 vCPU", 256 * 10**9, 1024 * 10**9, 1.90),
)
"""CPUs from small to large as documented: what a page can offer without asking the Hub."""


@dataclass(frozen=True)
class Wanted:
    """A job to be started: at most `seconds` long, found again by `mark`.

    `env` is seen by all who may see the job, `secrets` by nobody.
    """

    owner: str
    image: str
    command: Sequence[str]
    machine: str
    seconds: int
    mark: str
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Job:
    """A job as the Hub last told of it; `message` is what it says of the stage, if anything."""

    id: str
    owner: str
    url: str
    stage: str
    message: str = ""

    @property
    def over(self) -> bool:
        return self.stage in OVER


def smallest(memory: int, disk: int) -> Machine | None:
    """The smallest known hardware with so much memory and disk."""
    return next((m for m in KNOWN if m.memory >= memory and m.disk >= disk), None)


def machines(token: Token) -> dict[str, Machine]:
    """What jobs can run on, by name; nothing where the Hub does not tell."""
    with suppress(MergeError):
        found = _ask(lambda: api().list_jobs_hardware(token=token))
        return {one.name: _machine(one) for one in found}
    return {}


def account(token: str) -> str:
    """The name of the token's user. Raises MergeError."""
    return str(_ask(lambda: api().whoami(token=token))["name"])


def start(wanted: Wanted, *, token: str) -> Job:
    """Start a job. Raises MergeError.

    A second one would cost a second time: where the answer is lost, the job is looked for instead.
    """
    _quiet()
    try:
        with plainly("Jobs", "main"), _refused(wanted.machine):
            return _job(api().run_job(
                image=wanted.image, command=list(wanted.command), env=dict(wanted.env),
                secrets=dict(wanted.secrets), flavor=wanted.machine, timeout=wanted.seconds,
                name="merge", labels={MARK: wanted.mark}, namespace=wanted.owner, token=token,
            ))  # fmt: skip
    except UnreachableError as lost:
        try:
            found = find(wanted, token=token)
        except MergeError as error:
            raise MergeError(
                f"{lost} It may have started the job: run this again, to follow it then."
            ) from error
        if found is None:
            raise
        return found


def find(wanted: Wanted, *, token: str) -> Job | None:
    """A job of that mark which is not over, if there is one. Raises MergeError."""
    label = {MARK: wanted.mark}
    found = _ask(
        lambda: list(api().list_jobs(labels=label, namespace=wanted.owner, token=token)),
        attempts=1,  # the client makes several itself
    )
    marked = (_job(one) for one in found if (one.labels or {}).get(MARK) == wanted.mark)
    return next((job for job in marked if not job.over), None)


def look(job: Job, *, token: str) -> Job:
    """The job as it is now. Raises MergeError."""
    return _job(_ask(lambda: api().inspect_job(job_id=job.id, namespace=job.owner, token=token)))


def cancel(job: Job, *, token: str) -> None:
    """End a job. Raises MergeError."""
    _ask(lambda: api().cancel_job(job_id=job.id, namespace=job.owner, token=token))


class Log:
    """A job's log lines as they come, brought by a thread; a connection lost is made again.

    Nothing is told of a log that cannot be read: what became of the job is told by its stage.
    """

    def __init__(self, job: Job, *, token: str) -> None:
        self.job, self.token, self.stop = job, token, threading.Event()
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def take(self, seconds: float) -> str | None:
        """The next line, if it comes in so many seconds."""
        try:
            return self.lines.get(timeout=seconds)
        except queue.Empty:
            return None

    def rest(self, seconds: float) -> Iterator[str]:
        """The last lines of a job that is over; waits so many seconds for them."""
        self.thread.join(seconds)
        while not self.lines.empty():
            yield self.lines.get()

    def close(self) -> None:
        self.stop.set()

    def _run(self) -> None:
        seen = 0
        while not self.stop.is_set():
            try:
                for number, line in enumerate(self._read()):
                    if self.stop.is_set():
                        return
                    if number >= seen:  # a new connection tells all from the start
                        self.lines.put(line.rstrip("\n"))
                        seen += 1
                return
            except (UnreachableError, LimitError):
                self.stop.wait(AGAIN)
            except Exception:  # noqa: BLE001  # a log that cannot be read stops nobody
                return

    def _read(self) -> Iterator[str]:
        _quiet()
        with plainly("Jobs", "main"):
            yield from api().fetch_job_logs(
                job_id=self.job.id, namespace=self.job.owner, follow=True, token=self.token
            )


def _quiet() -> None:
    """The client's own warnings would stand between the lines of the log."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _ask(call: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """What a call that may be made twice returns, with patience; its failures as MergeError."""
    _quiet()

    def attempt() -> T:
        with plainly("Jobs", "main"), _refused():
            return call()

    return patiently(attempt, attempts=attempts)


@contextmanager
def _refused(machine: str = "") -> Iterator[None]:
    """Sentences for what only Jobs answer; leaves the rest to `plainly`."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        plain = _plain(error, machine)
        if plain is None:
            raise
        raise plain from error


def _plain(error: huggingface_hub.errors.HfHubHTTPError, machine: str) -> MergeError | None:
    status = error.response.status_code
    said = " ".join((error.server_message or "").split()).rstrip(".")
    said = f" ({said[:200]})" if said else ""
    if status == 402:
        return MergeError(
            f"This account has no credit for Jobs{said}: add some on "
            "huggingface.co/settings/billing, then run this again."
        )
    if status == 403:
        return AccessError(
            f"This login may not run Jobs{said}: make a token that may write and run Jobs on "
            "huggingface.co/settings/tokens."
        )
    if status == 404:
        return MergeError(f"The Hub knows no such job{said}: look on {constants.ENDPOINT}/jobs.")
    if status in (400, 409, 422):
        on = f" on `{machine}`" if machine else ""
        return MergeError(f"The Hub does not take the job{on}{said}: mend that, or choose others.")
    return None


def _job(info: huggingface_hub.JobInfo) -> Job:
    stage, message = info.status.stage, info.status.message
    name = str(getattr(stage, "value", stage))
    return Job(info.id, info.owner.name, info.url, name, " ".join((message or "").split()))


def _machine(info: huggingface_hub.JobHardwareInfo) -> Machine:
    hours = {"second": 3600, "minute": 60, "hour": 1}.get(info.unit_label, 0)
    return Machine(
        info.name, info.cpu, _bytes(info.ram), _bytes(info.ephemeral_storage),
        info.unit_cost_usd * hours, info.accelerator is not None,
    )  # fmt: skip


def _bytes(told: str) -> int:
    """`16 GB` in bytes; 0 for what is no size."""
    found = re.fullmatch(r"([\d.]+) *([MGT]B)", told or "")
    return int(float(found[1]) * UNITS[found[2]]) if found else 0
