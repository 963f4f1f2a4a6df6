"""A merge that outgrows this machine, as a Hugging Face Job on the user's account.

It knows what a job needs, is sent and runs, and how it is followed to its end; the command that it
runs there is this package's own, on the same recipe.
"""

import hashlib
import io
import math
import re
import shlex
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import NoReturn

from merging.card import HUB
from merging.errors import MergeError
from merging.hub import Token, jobs
from merging.hub.client import LimitError, UnreachableError
from merging.hub.publish import Target, arrived, lend, take_back
from merging.opening import APP, RESERVED
from merging.plan import Plan
from merging.pushing import AT_ONCE, SHARD

Say = Callable[[str], None]

IMAGE = "python:3.12"  # Docker's official one, and the Python of the Space; torch brings its CUDA
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
"""Where pip finds a torch without 3 GB of CUDA; pip prefers it to the same version with it."""
ARCHIVE, RECIPE = "merging.zip", "recipe.yaml"
SYSTEM = 15 * 10**9
"""Bytes on a job's disk for what is installed, beside parents and shards."""
LEAST, SLOWEST = 1800, 5e6
"""Seconds that a job may take, and bytes of parents and merged model for which it has one more."""
POLL = 5  # seconds between two looks at a job
LOST = 3600  # seconds without an answer of the Hub, after which a job is no longer followed
LINGER = 30  # seconds for which a job that ends may take to say so, or to tell its last lines
SETTINGS = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_PROGRESS_BAR": "off", "PIP_QUIET": "1", "PIP_ROOT_USER_ACTION": "ignore",
    "PYTHONUNBUFFERED": "1",
}  # fmt: skip
SCRIPT = """\
cd "$(mktemp -d)"
pip install "$1"
hf download "$2" "$3" --revision "$4" --local-dir . > /dev/null
python -m zipfile -e "$3" .
pip install -r requirements.txt
exec python -m merging run "${@:5}"
"""


class GoesOnError(MergeError):
    """A job that goes on, out of sight."""


def local_parent(plan: Plan) -> str | None:
    """A parent that is on this machine alone, if there is one."""
    parts = (part for name in plan.recipe.names() for part in name.split("+"))
    return next((part for part in parts if part not in RESERVED and not HUB.fullmatch(part)), None)


def offer(plan: Plan, memory: int) -> str | None:
    """The command line of a job with so much memory for a plan, if there is such hardware."""
    machine = None if local_parent(plan) else jobs.smallest(memory, _disk(plan))
    if machine is None:
        return None
    words = ["--job", machine.name, "--push-to", "my-merge"]
    return shlex.join(["python", "-m", "merging", "run", RECIPE, *words])


def machine(name: str, plan: Plan, *, token: Token, say: Say) -> jobs.Machine:
    """The hardware of that name, if it exists and the parents may go there. Raises MergeError."""
    if local := local_parent(plan):
        raise MergeError(
            f"{local} is a folder on this machine, where a job cannot read it: push it to the Hub "
            "and name it there, or merge here without --job."
        )
    told = jobs.machines(token)
    if told and name not in told:
        raise MergeError(f"Jobs have no hardware `{name[:40]}`: choose one of {', '.join(told)}.")
    found = told.get(name) or jobs.Machine(name, gpu=not name.startswith("cpu-"))
    if found.disk and found.disk < _disk(plan):
        say(f"note: the job needs up to {_disk(plan) / 1e9:.0f} GB of disk, and {name} has "
            f"{found.disk / 1e9:.0f} GB: it may break off.")  # fmt: skip
    return found


def run(plan: Plan, to: Target, on: jobs.Machine, options: Sequence[str], say: Say) -> str:
    """Merge as a job, which pushes to `to`; returns the repo's URL.

    `say` is given each line as it comes. Ctrl-C cancels the job. Raises MergeError for whatever
    keeps the merge from being in the repo at the end.
    """
    branch = f"merge-job-{plan.identity}"
    if to.published:
        take_back(to, branch)  # which a run that was killed may have left
        return to.url
    wanted = _wanted(plan, to, branch, on, options)
    with _taken_back(to, branch, say):
        job = jobs.find(wanted, token=to.token)
        if job is None:
            _send(plan, to, branch, say)
            say(f"A job on {_described(on)}, {wanted.seconds // 60} minutes at most.")
        else:
            say("This merge has a job already.")
        end = _ran(wanted, job, to.token, say)
        if end.stage != "COMPLETED":
            why = f" ({end.message})" if end.message else ""
            raise MergeError(f"The job ended with {end.stage}{why}: its log is on {end.url}.")
        if not arrived(to):
            raise MergeError(f"The job ended, and {to.id} lacks the merge: see {end.url}.")
    return to.url


def seconds(plan: Plan) -> int:
    """What a job may take at most: several times what it should."""
    return 60 * math.ceil((LEAST + (_parents(plan) + plan.size) / SLOWEST) / 60)


def archive(plan: Plan) -> tuple[bytes, list[str]]:
    """This version's code with the pinned recipe, the same bytes each time; and what git does not
    know, which is left out.
    """
    reserved = {p for n in plan.recipe.names() for p in n.split("+")} & set(RESERVED)
    names, strange = _files(["merging", "requirements.txt", *sorted(reserved)])
    content = {name: (APP / name).read_bytes() for name in names}
    content[RECIPE] = plan.recipe.to_yaml().encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as pack:
        for name in sorted(content):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # as made on Linux
            pack.writestr(entry, content[name], zipfile.ZIP_DEFLATED)
    return packed.getvalue(), strange


def _files(wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """What git tracks of the wanted paths, and what it does not; without git, what has our names.

    >>> tracked, _ = _files(["merging", "requirements.txt"])
    >>> "merging/__main__.py" in tracked, "requirements.txt" in tracked, "app.py" in tracked
    (True, True, False)
    """
    tracked = [name for name in _git("ls-files", "-z", "--", *wanted) if (APP / name).is_file()]
    if "merging/__main__.py" in tracked:
        others = _git("ls-files", "-z", "--others", "--exclude-standard", "--", "merging")
        return tracked, [name for name in others if name.endswith(".py")]
    found = [path for name in wanted for path in ((APP / name), *(APP / name).rglob("*"))]
    names = {path.relative_to(APP).as_posix() for path in found if path.is_file()}
    return [n for n in names if not n.startswith("merging/") or n.endswith(".py")], []


def _git(*words: str) -> list[str]:
    try:
        done = subprocess.run(["git", "-C", APP, *words], capture_output=True, check=False)
    except OSError:
        return []
    return [name for name in done.stdout.decode("utf-8", "replace").split("\0") if name]


def _parents(plan: Plan) -> int:
    """Bytes of all parents."""
    parts = {part.name: part for source in plan.sources for part in source.parts}
    return sum(i.size * i.dtype.itemsize for p in parts.values() for i in p.tensors.values())


def _disk(plan: Plan) -> int:
    return _parents(plan) + AT_ONCE * SHARD + SYSTEM


def _wanted(
    plan: Plan, to: Target, branch: str, on: jobs.Machine, options: Sequence[str]
) -> jobs.Wanted:
    client = next(
        line for line in (APP / "requirements.txt").read_text("utf-8").splitlines()
        if re.match("huggingface_hub", line)
    )  # fmt: skip
    mark = hashlib.sha256(f"{to.id} {plan.identity}".encode()).hexdigest()[:32]
    words = [client, to.id, ARCHIVE, branch, RECIPE, "--push-to", to.id, *options]
    return jobs.Wanted(
        owner=jobs.account(to.token), image=IMAGE, machine=on.name, seconds=seconds(plan),
        command=["bash", "-ec", SCRIPT, "job", *words], mark=mark,
        env=SETTINGS | ({} if on.gpu else {"PIP_EXTRA_INDEX_URL": CPU_TORCH}),
        secrets={"HF_TOKEN": to.token},
    )  # fmt: skip


def _send(plan: Plan, to: Target, branch: str, say: Say) -> None:
    packed, strange = archive(plan)
    for name in strange:
        say(f"note: {name} is not in git, and is not sent.")
    say(f"Sending this version's code, {len(packed) / 1e6:.1f} MB, to {to.id}.")
    lend(to, branch, ARCHIVE, packed)


@contextmanager
def _taken_back(to: Target, branch: str, say: Say) -> Iterator[None]:
    """Removes the archive at the end, whatever it is, unless a job may need it still."""
    try:
        yield
    except GoesOnError as error:
        where = f"the branch {branch} of {to.id}"
        raise GoesOnError(
            f"{error} Its code stays in {where}: run this again to follow it, or remove that."
        ) from error
    except BaseException:
        _take_back(to, branch, say)
        raise
    _take_back(to, branch, say)


def _take_back(to: Target, branch: str, say: Say) -> None:
    try:
        take_back(to, branch)
    except (MergeError, KeyboardInterrupt) as error:
        where = f"the branch {branch} of {to.id}"
        with suppress(OSError):
            say(f"note: the code is still in {where}: remove that branch. {error}")


def _ran(wanted: jobs.Wanted, job: jobs.Job | None, token: str, say: Say) -> jobs.Job:
    """The job as it ended. Whatever stops this program, but a lost connection, cancels the job."""
    try:
        job = job or jobs.start(wanted, token=token)
        say(f"Follow it here, or on {job.url}")
        return _followed(job, token, say)
    except MergeError:
        raise
    except KeyboardInterrupt:
        raise MergeError(_cancelled(job, wanted, token, say)) from None
    except BaseException:
        _cancelled(job, wanted, token, lambda _: None)
        raise


def _described(on: jobs.Machine) -> str:
    told = [on.cores, on.memory and f"{on.memory / 1e9:.0f} GB",
            on.hourly and f"${on.hourly:.2f} an hour"]  # fmt: skip
    listed = ", ".join(str(part) for part in told if part)
    return f"{on.name} ({listed})" if listed else on.name


def _followed(job: jobs.Job, token: str, say: Say) -> jobs.Job:
    """Tell a job's stages and its log until it is over."""
    log, heard, stage = jobs.Log(job, token=token), monotonic(), ""
    try:
        while not job.over:
            if job.stage != stage:
                stage = job.stage
                say(f"The job is {stage.lower()}.")
            _tell(log, say)
            try:
                job, heard = jobs.look(job, token=token), monotonic()
            except (UnreachableError, LimitError) as error:
                if monotonic() - heard > LOST:
                    _lost(job, error)
            except MergeError as error:
                _lost(job, error)
        for line in log.rest(LINGER):
            say(line)
        return job
    finally:
        log.close()


def _tell(log: jobs.Log, say: Say) -> None:
    """The lines that come before it is time to look again."""
    end = monotonic() + POLL
    while (left := end - monotonic()) > 0:
        line = log.take(left)
        if line is not None:
            say(line)


def _lost(job: jobs.Job, error: MergeError) -> NoReturn:
    raise GoesOnError(f"{error} The job goes on: follow it on {job.url}.") from error


def _cancelled(job: jobs.Job | None, wanted: jobs.Wanted, token: str, say: Say) -> str:
    """Cancels a job, or looks for the one that is just being started; what to say of it."""
    where = job.url if job else "huggingface.co/jobs"
    try:
        job = job or jobs.find(wanted, token=token)
        if job is None:
            return "Stopped before the job began."
        with suppress(OSError):  # Ctrl-C also ends what the output is piped into
            say("Cancelling the job.")
        try:
            jobs.cancel(job, token=token)
        except MergeError:
            job = jobs.look(job, token=token)  # what is over cannot be cancelled
            if not job.over:
                raise
        end = monotonic() + LINGER
        while not job.over and monotonic() < end:
            sleep(0.5)
            job = jobs.look(job, token=token)
    except (MergeError, KeyboardInterrupt) as error:
        return f"The job may go on, and cost: cancel it on {where}. {error}"
    if job.stage != "CANCELED" and job.over:
        return f"Stopped, but the job had ended before ({job.stage}): see {job.url}."
    return f"Stopped: the job is cancelled, see {job.url}."
