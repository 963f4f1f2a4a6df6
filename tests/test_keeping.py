"""How downloads are shared, by threads and processes, and what the cache keeps; no mocks.

Other processes are forks of this one, which costs no imports.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from merging import hub as ours
from merging import locks
from merging.errors import MergeError
from merging.hub import client, keeping
from tests.hub import LocalHub
from tests.hub.fixtures import hub as hub

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, and leases files")

SIZE = 400_000
SLOW = {"times": 99, "piece": 20_000, "delay": 0.02}  # about half a second a file


@pytest.fixture
def publish(hub: LocalHub, tmp_path: Path) -> Callable[..., ours.Repo]:
    """Puts a model of two shards on the Hub, and pins it."""

    def make(id: str, token: ours.Token = False, **about: Any) -> ours.Repo:
        folder = tmp_path / "published" / id
        folder.mkdir(parents=True)
        names = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
        for name in names:
            seed = sum(f"{id} {name}".encode())
            values = np.random.default_rng(seed).standard_normal(SIZE // 4, dtype=np.float32)
            save_file({"w": values}, folder / name)
        (folder / "config.json").write_text(f'{{"of": "{id}"}}')
        index = f'{{"weight_map": {{"a": "{names[0]}", "b": "{names[1]}"}}}}'
        (folder / "model.safetensors.index.json").write_text(index)
        hub.add(id, folder, **about)
        return ours.pin(id, token=token)

    return make


def drain(repo: ours.Repo, token: ours.Token = False) -> list[ours.Fetched]:
    return list(ours.download(repo, token=token))


def total(repo: ours.Repo) -> int:
    return sum(file.size for file in repo.files.values())


def sent(hub: LocalHub) -> int:
    return sum(seen.sent for seen in hub.requests("GET /(org|cdn)/"))


def place(id: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{id.replace('/', '--')}"


def leftovers() -> list[Path]:
    return [p for p in Path(constants.HF_HUB_CACHE).rglob("*") if "incomplete" in p.name]


def last_used(id: str, hours: float) -> None:
    """As if it had been used so long ago."""
    then = time.time() - 3600 * hours
    os.utime(place(id) / keeping.MARKER, (then, then))


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.01)


@contextmanager
def elsewhere(work: Callable[[], object]) -> Iterator[Any]:
    """Another process that works; killed, if it still does, in the end."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


# One download for all, in one process


def test_threads_share_one_stream(hub: LocalHub, publish: Callable[..., ours.Repo]) -> None:
    """Four people want a model: each byte comes once, and all see how far it is."""
    repo = publish("org/big")
    hub.fault("GET /cdn/", "slow", **SLOW)
    with ThreadPoolExecutor(5) as pool:
        small = pool.submit(ours.small_files, repo)
        seen = [task.result() for task in [pool.submit(drain, repo) for _ in range(4)]]
    assert small.result().is_dir()
    assert sent(hub) == total(repo)
    for one in seen:
        done = [fetched.done for fetched in one]
        assert done == sorted(done)
        assert len({d for d in done if 0 < d < total(repo)}) > 2
        assert one[-1] == ours.Fetched("", total(repo), total(repo))


def test_one_may_leave_and_the_last_stops_it(
    hub: LocalHub, publish: Callable[..., ours.Repo]
) -> None:
    """Stop stops one's own waiting; only when nobody waits any more do the bytes stop."""
    repo = publish("org/big")
    hub.fault("GET /cdn/", "slow", times=99, piece=4000, delay=0.02)
    first, second = ours.download(repo), ours.download(repo)
    while next(first).done < 20_000:
        pass
    next(second)
    first.close()
    now = next(second).done
    assert now >= 20_000
    while next(second).done < now + 20_000:
        pass
    start = time.monotonic()
    second.close()
    assert time.monotonic() - start < 0.5
    assert leftovers() == []
    assert len(hub.requests("GET /cdn/")) == 2
    time.sleep(0.5)
    still = sent(hub)
    time.sleep(0.5)
    assert sent(hub) == still
    hub.faults.clear()
    drain(repo)
    assert ours.cached(repo)


def test_a_download_can_be_begun_anew_at_once(
    hub: LocalHub, publish: Callable[..., ours.Repo]
) -> None:
    """A connection to a silent Hub is left at once, and does not hold up who comes next."""
    repo = publish("org/big")
    hub.fault("GET /cdn/", "hang", times=2, after=9000)
    stopped = ours.download(repo)
    while next(stopped).done < 9000:
        pass
    start = time.monotonic()
    stopped.close()
    drain(repo)
    assert time.monotonic() - start < 3
    assert ours.cached(repo)


def test_anothers_lost_access_stops_nobody_else(
    hub: LocalHub, publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gated file that one's token can no longer fetch is fetched with the next one's."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    hub.user("hf_alice", reads=["org/gated"])
    hub.user("hf_bob", reads=["org/gated"])
    repo = publish("org/gated", "hf_alice", gated=True)
    ours.small_files(repo, token="hf_alice")
    hub.fault("GET /org/gated/resolve/", "hang", times=2)
    with ThreadPoolExecutor(2) as pool:
        before = len(hub.log)
        alice = pool.submit(drain, repo, "hf_alice")
        until(lambda: len(hub.log) == before + 2)
        bob = pool.submit(drain, repo, "hf_bob")
        hub.revoke("hf_alice", "org/gated")
        assert bob.result()[-1].done == total(repo)
        with pytest.raises(MergeError, match=r"org/gated is gated"):
            alice.result()
    assert leftovers() == []


# … and among processes


@pytest.mark.parametrize("whose", ["ours", "the client's"])
def test_processes_take_turns(hub: LocalHub, publish: Callable[..., ours.Repo], whose: str) -> None:
    """What another process fetches is waited for, in sight, and not fetched twice."""
    repo = publish("org/big")
    ours.small_files(repo)
    hub.fault("GET /cdn/", "slow", times=99, piece=20_000, delay=0.05)
    with elsewhere(
        (lambda: drain(repo))
        if whose == "ours"
        else (lambda: huggingface_hub.snapshot_download("org/big", token=False))
    ):
        until(lambda: len(hub.requests("GET /cdn/")) == 2)
        seen = drain(repo)
    assert any("(another process fetches it)" in fetched.file for fetched in seen)
    assert len({f.done for f in seen if f.done < total(repo)}) > (2 if whose == "ours" else 0)
    assert sum(seen.sent for seen in hub.requests("GET /cdn/")) < 2 * SIZE + 1000
    assert ours.cached(repo)


def test_waiting_for_another_process_can_be_stopped(
    hub: LocalHub, publish: Callable[..., ours.Repo]
) -> None:
    """Stop works while another process is at it, and leaves that one alone."""
    repo = publish("org/big")
    hub.fault("GET /cdn/", "slow", times=99, piece=20_000, delay=0.1)
    with elsewhere(lambda: drain(repo)) as process:
        until(lambda: len(hub.requests("GET /cdn/")) == 2)
        waiting = ours.download(repo)
        while "another" not in next(waiting).file:
            pass
        start = time.monotonic()
        waiting.close()
        assert time.monotonic() - start < 1
        assert len(leftovers()) == 2
        process.join()
        assert process.exitcode == 0
    assert ours.cached(repo)


def stuck_at(size: int) -> int:
    """How many half files have this many bytes."""
    count = 0
    for path in leftovers():
        with suppress(FileNotFoundError):  # it has become whole since it was listed
            count += path.stat().st_size == size
    return count


@pytest.mark.parametrize("cleaned", ["by the next download", "by clean"])
def test_leftovers_of_the_killed_go_and_those_of_the_living_stay(
    hub: LocalHub, publish: Callable[..., ours.Repo], cleaned: str
) -> None:
    """A process killed mid-file leaves pieces, that nobody will take up again."""
    repo, other = publish("org/killed"), publish("org/alive")
    for each in (repo, other):
        ours.small_files(each)  # else one of them may be half there as well
    hub.fault("GET /cdn/", "hang", times=4, after=9000)
    with elsewhere(lambda: drain(repo)) as killed, elsewhere(lambda: drain(other)):
        until(lambda: stuck_at(9000) == 4)
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        if cleaned == "by clean":
            assert ours.clean() == 18_000
        else:
            drain(repo)
        assert len(leftovers()) == 2
        assert all(place("org/alive") in path.parents for path in leftovers())
    assert ours.clean() == 18_000
    assert leftovers() == []


def test_whoever_waited_for_the_killed_goes_on(
    hub: LocalHub, publish: Callable[..., ours.Repo]
) -> None:
    """The lock of a killed process is free, and the file is fetched by the next."""
    repo = publish("org/big")
    hub.fault("GET /cdn/", "hang", times=2, after=9000)
    with elsewhere(lambda: drain(repo)) as process:
        until(lambda: len(hub.requests("GET /cdn/")) == 2)
        waiting = ours.download(repo)
        while "another" not in next(waiting).file:
            pass
        process.kill()
        *_, last = waiting
    assert last.done == total(repo)
    assert leftovers() == []


def test_a_disk_that_fills_up_is_said(publish: Callable[..., ours.Repo], tmp_path: Path) -> None:
    """Mid-file, the disk refuses: one sentence, and nothing half-kept."""
    import resource

    repo = publish("org/big")

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(MergeError, match=r"org/big needs 0.0 GB of disk.*File too large"):
            drain(repo)
        (tmp_path / "said").touch()

    with elsewhere(work) as process:
        process.join()
    assert (tmp_path / "said").exists()
    assert leftovers() == []
    assert ours.cached(repo) is None
    drain(repo)


# What is kept


def test_the_state_of_the_cache(
    publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes and models that this app fetched, not those of other tools; the budget if any."""
    assert ours.kept_state().count == ours.kept_state().bytes == 0
    one, two = publish("org/one"), publish("org/two")
    drain(one)
    ours.small_files(two)
    publish("org/theirs")
    huggingface_hub.snapshot_download("org/theirs", token=False)
    state = ours.kept_state()
    small = sum(file.size for name, file in two.files.items() if name.endswith("json"))
    assert (state.bytes, state.count, state.budget) == (total(one) + small, 2, None)
    assert state.free > 0
    monkeypatch.setenv("MERGING_CACHE_GB", "0.5")
    assert ours.kept_state().budget == 500_000_000


@pytest.mark.usefixtures("hub")
def test_a_space_keeps_to_a_share_of_its_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Space's disk has other uses too."""
    monkeypatch.setenv("SPACE_ID", "org/space")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=50e9, free=20e9))
    assert ours.kept_state().budget == 35_000_000_000


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("said", ["much", "0", "-1", "nan", "inf", "1,5"])
def test_a_budget_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """A slip in the setting is said, rather than taken for no bound."""
    monkeypatch.setenv("MERGING_CACHE_GB", said)
    with pytest.raises(MergeError, match=r"MERGING_CACHE_GB is .*: set it to a number of GB"):
        ours.kept_state()


def test_what_was_not_used_for_longest_goes_first(
    publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for two: the third takes the place of the one whose last use is longest ago."""
    monkeypatch.setenv("MERGING_CACHE_GB", "0.002")
    repos = {name: publish(f"org/{name}") for name in ("a", "b", "c", "d")}
    drain(repos["a"])
    drain(repos["b"])
    last_used("org/a", 3)
    last_used("org/b", 2)
    with ours.using(["org/a"]):
        pass
    drain(repos["c"])
    assert ours.cached(repos["b"]) is None
    assert not place("org/b").exists()
    assert ours.cached(repos["a"]) and ours.cached(repos["c"])
    last_used("org/a", 3)
    last_used("org/c", 2)
    drain(repos["a"])
    drain(repos["d"])
    assert not place("org/c").exists(), "a was asked for again"
    assert ours.kept_state().bytes == total(repos["a"]) + total(repos["d"]) < 2_000_000
    drain(repos["b"])
    assert ours.cached(repos["b"])


def test_a_short_disk_makes_room_too(
    publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a budget the disk's end is the bound; what cannot fit costs nobody anything."""
    old, new = publish("org/old"), publish("org/new")
    drain(old)
    ours.small_files(new)
    free = SimpleNamespace(total=10**9, free=500_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    huge = {**new.files, "config.json": ours.File(10**12, None, "0" * 40)}
    with pytest.raises(MergeError, match=r"needs 1000.0 GB of disk, 0.0 GB are free"):
        drain(ours.Repo("org/new", new.revision, huge, False))
    assert ours.cached(old)
    drain(new)
    assert not place("org/old").exists()


@pytest.mark.parametrize("where", ["here", "in another process"])
@pytest.mark.parametrize("how", ["by name", "by folder"])
def test_nothing_in_use_is_removed(
    publish: Callable[..., ours.Repo],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    how: str,
) -> None:
    """A model that somebody merges, or chats with, stays; the other is told what to do."""
    monkeypatch.setenv("MERGING_CACHE_GB", "0.001")
    used, other = publish("org/used"), publish("org/other")
    drain(used)
    model = f"org/used@{used.revision}" if how == "by name" else ours.cached(used)
    assert model
    begun = multiprocessing.get_context("fork").Event()

    def use() -> None:
        with ours.using(["assets/demo/base", Path("/tmp"), model]):
            begun.set()
            done.wait(10)

    done = multiprocessing.get_context("fork").Event()
    thread = threading.Thread(target=use)
    with elsewhere(use) if where != "here" else elsewhere(lambda: None):
        if where == "here":
            thread.start()
        assert begun.wait(10)
        with pytest.raises(MergeError, match=r"may take 0.0 GB, of which 0.0 GB are in use"):
            drain(other)
        assert ours.cached(used)
        assert ours.clean() == 0
        done.set()
        if where == "here":
            thread.join()
    drain(other)
    assert not place("org/used").exists()


def test_a_lease_ends_although_a_child_was_forked_meanwhile(
    publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that lives on does not hold what its parent has let go."""
    monkeypatch.setenv("MERGING_CACHE_GB", "0.001")
    used, other = publish("org/used"), publish("org/other")
    drain(used)
    with ours.using(["org/used"]):
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(9,))
        process.start()
    drain(other)
    process.kill()
    process.join()
    assert not place("org/used").exists()


def test_a_look_whether_a_repo_is_used_ends_although_a_child_was_forked_meanwhile(
    publish: Callable[..., ours.Repo],
) -> None:
    """Else whoever uses the model next would wait for as long as the child lives."""
    drain(publish("org/one"))
    with keeping._taken(place("org/one")) as free:
        assert free
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        process.start()
    try:
        with keeping._taken(place("org/one")) as free:
            assert free
    finally:
        process.kill()
        process.join()


def test_a_model_is_held_before_it_is_there(
    publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two parents that do not fit together are refused, not fetched in turns for ever."""
    monkeypatch.setenv("MERGING_CACHE_GB", "0.001")
    one, two = publish("org/one"), publish("org/two")
    with ours.using(["org/one", "org/two"]):
        drain(one)
        with pytest.raises(MergeError, match=r"org/two needs .* raise MERGING_CACHE_GB"):
            drain(two)
        assert ours.cached(one)
    with ours.using(["org/never", "org/nor+org/this@main"]):
        assert place("org/never").exists() and place("org/this").exists()
    assert not place("org/never").exists(), "a lease leaves nothing behind"
    assert huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).warnings == []


@pytest.mark.parametrize("case", ["theirs", "theirs, asked for here", "ours, and theirs added"])
def test_what_other_tools_fetched_is_never_removed(
    hub: LocalHub,
    publish: Callable[..., ours.Repo],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    case: str,
) -> None:
    """Neither their repos, nor one into which they put a single file, wholly or damaged."""
    theirs, other = publish("org/theirs"), publish("org/other")
    if "added" in case:
        drain(theirs)
        extra = tmp_path / "published" / "org" / "theirs"
        (extra / "config.json").write_text("{}")
        hub.add("org/theirs", extra)
        huggingface_hub.hf_hub_download("org/theirs", "config.json", token=False)
    else:
        huggingface_hub.snapshot_download("org/theirs", token=False)
    if "asked" in case:
        for path in (place("org/theirs") / "blobs").iterdir():
            path.write_bytes(bytes(path.stat().st_size))
        drain(theirs)
    monkeypatch.setenv("MERGING_CACHE_GB", "0.001")
    drain(other)
    monkeypatch.setenv("MERGING_CACHE_GB", "0.0005")
    assert ours.clean() == total(other)
    assert ours.cached(other) is None
    drain(theirs)
    assert ours.cached(theirs)


def test_what_is_removed_can_still_be_read_by_who_has_it_open(
    publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapped file outlives its name."""
    repo = publish("org/one")
    drain(repo)
    folder = ours.cached(repo)
    assert folder
    path = folder / "model-00001-of-00002.safetensors"
    data = path.read_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        monkeypatch.setenv("MERGING_CACHE_GB", "0.0001")
        assert ours.clean() == total(repo)
        assert not path.exists()
        assert mapped[:] == data


def test_a_gated_model_goes_as_others_do(
    hub: LocalHub, publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mark goes with its bytes."""
    hub.user("hf_alice", reads=["org/gated"])
    repo = publish("org/gated", "hf_alice", gated=True)
    drain(repo, "hf_alice")
    monkeypatch.setenv("MERGING_CACHE_GB", "0.0001")
    assert ours.clean() == total(repo)
    assert not place("org/gated").exists()


def test_without_leases_nothing_is_removed(
    publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a system has none, what is in use cannot be known."""
    monkeypatch.setattr(locks, "THERE", False)
    monkeypatch.setenv("MERGING_CACHE_GB", "0.001")
    one, two = publish("org/one"), publish("org/two")
    with ours.using(["org/one"]):
        drain(one)
    with pytest.raises(MergeError, match=r"raise MERGING_CACHE_GB"):
        drain(two)
    assert ours.cached(one)


def test_what_is_under_way_counts(
    hub: LocalHub, publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two downloads that fit alone and not together do not both begin."""
    monkeypatch.setattr(client, "PAUSE", 0.01)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
    one, two = publish("org/one"), publish("org/two")
    hub.fault("GET /cdn/", "hang", times=2, after=9000)
    monkeypatch.setenv("MERGING_CACHE_GB", "0.001")
    first = ours.download(one)
    while next(first).done < 18_000:
        pass
    with pytest.raises(MergeError, match=r"org/two needs"):
        next(ours.download(two))
    *_, last = first
    assert last.done == total(one)


def test_only_what_is_lacking_needs_room(
    hub: LocalHub,
    publish: Callable[..., ours.Repo],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A new commit with the same weights needs a few bytes."""
    drain(publish("org/one"))
    folder = tmp_path / "published" / "org" / "one"
    (folder / "config.json").write_text("{}")
    hub.add("org/one", folder)
    repo = ours.pin("org/one")
    monkeypatch.setenv("MERGING_CACHE_GB", "0.001")
    drain(repo)
    assert ours.cached(repo)


def test_room_counts_what_may_make_way(
    publish: Callable[..., ours.Repo], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full cache is no full disk: what nobody uses goes when others come."""
    repo = publish("org/one")
    drain(repo)
    monkeypatch.setattr(keeping, "disk", lambda: (10**12, 5000))
    assert ours.room() == 5000 + total(repo)
    monkeypatch.setenv("MERGING_CACHE_GB", "0.000003")
    assert ours.room() == 3000
