"""The library: who leaves when room is needed, who never does, and what is said if none is."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from merging.errors import MergeError
from merging.library import FINDINGS, Library, NoRoomError, budget
from merging.loading import Loaded, chat_dtype, load_parent
from merging.memory import Size
from merging.opening import open_folder
from merging.threads import cores
from tests.conftest import WEIGHTS

MEGABYTE = 10**6


class Weights(torch.nn.Module):
    """A model of so many bytes, for a library that looks at nothing else."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(size, dtype=torch.uint8), requires_grad=False)


def loads(size: int, calls: list[int] | None = None) -> Callable[[], Loaded]:
    def load() -> Loaded:
        if calls is not None:
            calls.append(size)
        return Loaded.of(Weights(size), None)

    return load


@pytest.fixture
def library() -> Library:
    return Library("cpu", 3 * MEGABYTE)


def take(library: Library, *keys: str) -> None:
    """Borrow and give back, one after the other, a megabyte each."""
    for key in keys:
        with library.borrow(key, MEGABYTE, loads(MEGABYTE)):
            pass


def test_loads_once(library: Library) -> None:
    """A model that is there is lent again without being loaded again."""
    calls: list[int] = []
    for _ in range(3):
        with library.borrow("a", MEGABYTE, loads(MEGABYTE, calls)) as loaded:
            assert loaded.size == MEGABYTE
    assert calls == [MEGABYTE]


def test_least_recently_used_leaves(library: Library) -> None:
    """The model that was not used for longest makes room, and only as many as are needed."""
    take(library, "a", "b", "c", "a", "d")
    assert [key for key in "abcd" if library.has(key)] == ["a", "c", "d"]


def test_lent_models_stay(library: Library) -> None:
    """A model that somebody is using never leaves, however long ago it was lent."""
    with library.borrow("a", MEGABYTE, loads(MEGABYTE)):
        take(library, "b", "c", "d", "e")
        assert library.has("a")
    take(library, "b", "c", "d")
    assert not library.has("a")


def test_lent_twice_is_lent(library: Library) -> None:
    """A model that two use stays until the second has given it back."""
    with library.borrow("a", MEGABYTE, loads(MEGABYTE)):
        take(library, "a")
        take(library, "b", "c", "d")
        assert library.has("a")


def test_no_room_is_a_sentence_with_numbers(library: Library) -> None:
    """What cannot fit beside the lent models is refused with sizes, before anything is loaded."""
    calls: list[int] = []
    with ExitStack() as lent:
        for key in "ab":
            lent.enter_context(library.borrow(key, MEGABYTE, loads(MEGABYTE)))
        with (
            pytest.raises(MergeError, match="memory"),
            library.borrow("c", 2 * MEGABYTE, loads(2 * MEGABYTE, calls)),
        ):
            pass
    assert calls == []
    assert library.has("a")
    take(library, "c")  # and the library goes on working


def test_where_nothing_helps_nothing_leaves(library: Library) -> None:
    """Idle models stay where they would not be enough; what waiting would mend is its own error."""
    take(library, "b", "c")
    with library.borrow("a", MEGABYTE, loads(MEGABYTE)):
        with pytest.raises(NoRoomError, match=r"0\.0 of the"):
            library.make_room(5 * MEGABYTE // 2)
        assert [key for key in "abc" if library.has(key)] == ["a", "b", "c"]
    with pytest.raises(MergeError) as never:
        library.make_room(4 * MEGABYTE)
    assert never.type is MergeError and len(library.shelf) == 3


def test_found_models_are_lent(library: Library) -> None:
    """What is here stays as long as the stack is open; what is not is None."""
    take(library, "a")
    with ExitStack() as stack:
        assert library.found("b", stack) is None
        assert library.found("a", stack) is library.shelf["a"]
        take(library, "b", "c", "d")
        assert library.has("a")
    take(library, "b", "c", "d")
    assert not library.has("a")


def test_a_merge_that_others_make_has_its_room(library: Library) -> None:
    """Who wants the same needs no other; who wants another finds that much less."""
    size = Size(3 * MEGABYTE, 3 * MEGABYTE)
    with library.room(MEGABYTE, "merge"):
        assert library.ways({"merge": size}, []) == ("all at once", "one by one", "in turn")
        assert library.ways({"other": size}, []) == ("in turn",)


def test_parts_wait_in_memory_that_is_there() -> None:
    """A model comes in parts where it has no room, and the machine's memory has some for it."""
    for spare, room in ((0, None), (3 * MEGABYTE, None), (4 * MEGABYTE, 3 * MEGABYTE)):
        library = Library("cuda", 3 * MEGABYTE, spare)
        assert library.room_in_parts(4 * MEGABYTE, parts=False) == room
        assert library.room_in_parts(2 * MEGABYTE, parts=False) is None


def test_numbers_in_the_sentence() -> None:
    """The sentence says how much is needed, how much is in use, and of how much."""
    library = Library("cpu", 5 * 10**9)
    with pytest.raises(MergeError, match=r"7\.5 GB more.*0\.0 of the 5\.0 GB"):
        library.make_room(7_500_000_000)


def test_failed_load_leaves_nothing(library: Library) -> None:
    """A model that could not be loaded is neither held nor lent."""

    def fails() -> Loaded:
        raise MergeError("broken")

    with pytest.raises(MergeError, match="broken"), library.borrow("a", MEGABYTE, fails):
        pass
    assert not library.has("a")
    take(library, "a")
    assert library.has("a")


def test_borrowing_at_once_loads_once(library: Library) -> None:
    """Many who want the same model at the same time get one, loaded once."""
    calls: list[int] = []
    seen: list[Loaded] = []

    def slow() -> Loaded:
        calls.append(1)
        time.sleep(0.05)
        return Loaded.of(Weights(MEGABYTE), None)

    def borrow() -> None:
        with library.borrow("a", MEGABYTE, slow) as loaded:
            seen.append(loaded)

    threads = [threading.Thread(target=borrow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    assert len({id(loaded) for loaded in seen}) == 1


def test_published_merges_can_be_borrowed(library: Library) -> None:
    """A published merge is lent under its identity, and makes room like any other later on."""
    loaded = loads(MEGABYTE)()
    library.publish("merge", loaded)
    with library.borrow("merge", 0, loads(0)) as lent:
        assert lent is loaded
    take(library, "a", "b", "c")
    assert not library.has("merge")


def test_numbers_are_kept_for_one_set_of_parents(library: Library) -> None:
    """What a merge measured is there for the next on the same parents, and gone with others."""
    library.numbers("a b")[("ties", "x")] = {"threshold": 1.0}
    assert library.numbers("a b") == {("ties", "x"): {"threshold": 1.0}}
    assert library.numbers("a c") == {}
    assert library.numbers("a b") == {}


def test_budget_is_below_what_is_free() -> None:
    """The budget leaves room for what is no model."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < budget("cpu") < total


def test_what_models_chat_in() -> None:
    """A GPU keeps what the checkpoint has, a CPU bf16 alone."""
    for own in (torch.bfloat16, torch.float16, torch.float32):
        assert chat_dtype("cuda", own) is own
        assert chat_dtype("cpu", own) is (torch.float32 if own is torch.float16 else own)


def test_a_loaded_parent_has_left_its_file(pico: dict[str, Path], tmp_path: Path) -> None:
    """Files that are overwritten or cut while a model chats do not touch it."""
    folder = Path(shutil.copytree(pico["a"], tmp_path / "a"))
    loaded = load_parent(open_folder(folder, "a", "stamp"), "cpu")
    before = [weight.clone() for weight in loaded.model.parameters()]
    with (folder / WEIGHTS).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(bytes(size))
    assert loaded.model.dtype is torch.bfloat16
    assert all(map(torch.equal, before, loaded.model.parameters()))


def test_beside_others_nothing_leaves(pico: dict[str, Path]) -> None:
    """A parent is lent where it is here or fits as things are; else nobody makes room for it."""
    a, b = (open_folder(pico[name], name) for name in "ac")
    size = sum(info.size * 2 for info in a.tensors.values())
    library = Library("cpu", MEGABYTE + size * 3 // 2)
    take(library, "other")
    with library.beside(a) as first, library.beside(b) as second:
        assert first is not None and first.size == size and second is None
    with library.beside(a) as again:
        assert again is first
    assert library.has("other") and not any(library.lent.values())


def test_a_gpu_has_one_driver() -> None:
    """On a processor each core answers; on a GPU one thread does for all, whoever asks."""
    assert Library("cuda", MEGABYTE).turns.count == 1
    assert Library("cpu", MEGABYTE).turns.count == cores()


def test_findings_are_few(library: Library) -> None:
    """The oldest go, and what is found anew stands in place of the old."""
    for number in range(FINDINGS + 10):
        library.note(str(number), number)
    assert len(library.known) == FINDINGS and "9" not in library.known
    library.note(str(FINDINGS), None)
    assert library.known[str(FINDINGS)] is None and len(library.known) == FINDINGS
