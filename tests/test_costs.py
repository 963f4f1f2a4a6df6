"""What a merge is said to cost on this machine, against what it costs."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from merging import costs, elsewhere, merge, plan
from merging import hub as ours
from merging.conversation import MAX_CONTEXT
from merging.costs import Costs, way
from merging.library import READ
from merging.machines import MACHINES
from merging.memory import SHARE, TOLD, Size
from merging.sinks import Live
from tests.conftest import WEIGHTS, config, loaded, recipe, save, tokenizer
from tests.hub import LocalHub
from tests.hub.fixtures import hub
from tests.ui.running import ROOT

__all__ = ["hub"]  # a fixture

Pico = dict[str, Path]
GB = 10**9
PLENTY = Costs(0, 10**12, Size(GB // 4, 10**8), (Size(GB // 4, 10**8),) * 3, 5.0, 100 * GB, 10**10)


def test_bytes(pico: Pico, hub: LocalHub) -> None:
    """All columns are parents and merged model in the chat's type; files not here are counted."""
    hub.add("org/a", pico["a"])
    found = plan(recipe("ties", ["org/a", pico["b"]], base_model=pico["base"]))
    elements = [sum(t.numel() for t in loaded(pico[n]).values()) for n in ("a", "b", "base")]
    merged = sum(step.size for step in found.steps)
    half = plan(replace(found.recipe, out_dtype="float16"))
    for device, width in (("cpu", 4), ("cuda", 2)):
        spent = costs.costs(half, room=10**9, device=device)
        assert spent.together == 2 * sum(elements) + width * merged
        assert spent.merge.whole == width * merged
    for device in ("cpu", "cuda"):
        spent = costs.costs(found, room=10**9, device=device)
        assert spent.together == 2 * (sum(elements) + merged)
        assert spent.merge.whole == 2 * merged
        assert max(parent.whole for parent in spent.parents) == 2 * max(elements)
        assert spent.fitting * spent.together == pytest.approx(10**9 * merged, rel=1e-3)
        assert spent.missing == (pico["a"] / WEIGHTS).stat().st_size
        assert (spent.seconds is None) == (device == "cuda")
    assert spent.disk == pytest.approx(ours.room(), rel=0.2)


def words(spent: Costs) -> list[tuple[str, str]]:
    return [(note.level, note.text) for note in costs.notes(spent)]


def test_what_fits_is_one_green_line() -> None:
    """Bytes, memory and time at a glance."""
    assert words(PLENTY) == [
        ("green", "Nothing to fetch · 1.0 GB of memory, 100.0 GB free · about 5 s to merge")
    ]
    fetched = replace(PLENTY, missing=3_100_000_000, seconds=0.2)
    assert words(fetched)[0][1].startswith("3.1 GB to fetch, room for 1000.0 GB on the disk · ")
    assert words(fetched)[0][1].endswith("under a second to merge")
    assert words(replace(PLENTY, seconds=300.0))[0][1].endswith("about 5 min to merge")
    assert "to merge" not in words(replace(PLENTY, seconds=None))[0][1]


def test_a_disk_that_is_too_small_is_red() -> None:
    """With how much to free."""
    (level, text), *_ = words(replace(PLENTY, missing=45 * 10**9, disk=20 * 10**9))
    assert level == "red"
    assert "45.0 GB to fetch, and room for 20.0 GB" in text
    assert "free 25.0 GB, or choose smaller models" in text


def alike(count: int, spent: Costs = PLENTY, **changes: Any) -> Costs:
    """The costs of a merge of three models, all of so many bytes; a twentieth must be on a GPU."""
    size = Size(count, count // 20)
    return replace(spent, merge=size, parents=(size,) * 3, **changes)


def test_memory_that_is_too_small() -> None:
    """Amber if not all fit together, with how they answer; red if none fits alone; and the way out:
    smaller models, or the smallest machine that would do.
    """
    spent = alike(14 * GB, fitting=500_000_000)
    for room, said in ((30, "the merge stays"), (20, "the merge made anew")):
        (level, text), *_ = words(replace(spent, room=room * GB))
        assert level == "amber" and said in text
    assert "56.0 GB together, and 20.0 GB of memory are free" in text
    assert "choose models of at most 500 M parameters each" in text
    (level, text), *_ = words(replace(spent, room=8 * GB, spare=20 * GB))
    assert level == "amber" and "slowly, a part of it in the machine's memory" in text
    (level, text), *_ = words(replace(spent, room=8 * GB))
    assert level == "red" and "python -m merging run" in text
    assert "up to 14.0 GB here, and 8.0 GB" in text
    assert "`cpu-upgrade` (32 GB, $0.03 an hour) would do" in text
    (level, text), *_ = words(alike(900 * GB, room=8 * GB))
    assert level == "red" and "no single machine" in text


def test_the_smallest_machine_would_do_and_no_smaller_one() -> None:
    """For models of many sizes, the machine that is named is the first on which there is a way."""
    named = set()
    for size in range(1, 120):
        spent = alike(size * GB, room=0)
        text = " ".join(said for _, said in words(spent))
        does = [way(replace(spent, room=m.room, spare=m.spare)) != "nothing" for m in MACHINES]
        first = MACHINES[does.index(True)] if any(does) else None
        assert (first is None) == ("no single machine" in text)
        assert first is None or f"`{first.name}`" in text
        named.add(first and first.name)
    assert named == {"cpu-basic", "cpu-upgrade", "l40sx1", "a100-large", None}


def test_readmes_table_of_machines() -> None:
    """It says of seven billion parameters in bf16, thrice and merged, what `way` says, on a GPU
    with 30 GB of memory beside it and on a CPU.
    """
    each = Size(7_241_732_096 * 2, (131_072_000 + 218_112_000) * 2)  # Mistral's embeddings, a layer
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) GB \| (.+?) \| (.+?) \|$", readme, re.MULTILINE)
    assert [size for size, *_ in rows] == ["16", "24", "48", "80", "96"]
    for size, *said in rows:
        seven = replace(PLENTY, merge=each, parents=(each,) * 3, room=int(SHARE * int(size) * GB))
        found = [way(replace(seven, spare=spare)) for spare in (int(SHARE * 30 * GB), 0)]
        assert said == [TOLD[each] for each in found], size


def test_readmes_prices() -> None:
    """The largest models that answer all at once on each machine, four in bf16, and what it costs:
    the next tenth of a billion has no room.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(.+?)` \| (.+?) B \| (.+?) \| (.+?) \|$", readme, re.MULTILINE)
    assert [name for name, *_ in rows] == [machine.name for machine in MACHINES]
    for machine, (_, said, hour, two) in zip(MACHINES, rows, strict=True):
        for billions, fits in ((float(said) - 0.05, True), (float(said) + 0.05, False)):
            spent = alike(int(2 * billions * GB), room=machine.room)
            assert (way(spent) == "all at once") == fits
        assert [hour, two] == [f"${n * machine.hourly:.2f}" for n in (1, 2)]


def test_keys_and_values_have_room() -> None:
    """Four columns of a Mistral 7 B at the longest that is read, in what weights leave of 16 GB."""
    a_token = 2 * 32 * 8 * 128 * 2  # keys and values, layers, heads, their width, bf16
    assert 4 * MAX_CONTEXT * a_token + READ * SHARE * 16 * GB < (1 - SHARE) * 16 * GB


def test_where_it_would_fit() -> None:
    """The command of a job, once, where something keeps the merge from this machine; not else."""
    spent = replace(PLENTY, job="python -m merging run recipe.yaml --job cpu-xl --push-to my-merge")
    assert not [text for _, text in words(spent) if "--job" in text]
    assert not [text for _, text in words(alike(30 * GB, spent)) if "--job" in text]
    small = [replace(spent, missing=10**13), alike(10**12, spent)]
    both = [alike(10**12, small[0]), alike(30 * GB, small[0])]
    for found in (*small, *both):
        offered = [(level, text) for level, text in words(found) if "--job" in text]
        ((level, text),) = offered
        assert level == "red" and text.endswith(f"download the recipe, then `{spent.job}`.")
    assert not [text for _, text in words(replace(small[0], job=None)) if "--job" in text]


def test_the_smallest_hardware_that_fits(pico: Pico, hub: LocalHub) -> None:
    """By memory and by disk; none for more than there is, or for folders of this machine."""
    for name in ("base", "a"):
        hub.add(f"org/{name}", pico[name])
    found = plan(recipe("linear", ["org/a", "org/base"]))
    assert costs.costs(found, room=10**9, device="cpu").job == (
        "python -m merging run recipe.yaml --job cpu-basic --push-to my-merge"
    )
    chosen = {size: elsewhere.offer(found, size * 10**9) or "" for size in (16, 17, 33, 125, 257)}
    names = [text.split()[6] if text else None for text in chosen.values()]
    assert names == ["cpu-basic", "cpu-upgrade", "cpu-xl", "cpu-performance", None]
    source = found.sources[0]
    info = replace(source.tensors["model.norm.weight"], shape=(20 * 10**9,))
    large = replace(source, tensors={**source.tensors, "model.norm.weight": info})
    wide = replace(found, sources=(large, found.sources[1]))  # 40 GB in bfloat16
    assert "--job cpu-xl " in (elsewhere.offer(wide, 10**9) or "")
    mixed = plan(recipe("linear", ["org/a", pico["base"]]))
    assert costs.costs(mixed, room=10**9, device="cpu").job is None


def test_a_job_has_time_enough(pico: Pico) -> None:
    """Half an hour, and a second for each 5 MB of parents and merged model, in whole minutes."""
    found = plan(recipe("linear", [pico["a"], pico["base"]]))
    assert elsewhere.seconds(found) == 31 * 60
    steps = [replace(step, shape=(10**9,)) for step in found.steps[:1]]
    grown = replace(found, steps=tuple(steps))
    assert elsewhere.seconds(grown) == 37 * 60  # 2 GB in bfloat16: 400 s


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Pico:
    """Three models of twelve million elements: merges whose handling is little beside the rest."""
    root, generator = tmp_path_factory.mktemp("larger"), torch.Generator().manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (64, 1024), "model.norm.weight": (1024,),
        **{f"model.layers.{n}.mlp.up_proj.weight": (1024, 1024) for n in range(12)},
    }  # fmt: skip
    base = {k: torch.randn(shape, generator=generator) for k, shape in shapes.items()}
    settings = {
        "num_hidden_layers": 12, "hidden_size": 1024, "intermediate_size": 1024,
        "tie_word_embeddings": True,
    }  # fmt: skip
    for name in ("base", "a", "c"):
        tensors = {k: v + 0.02 * torch.randn(v.shape, generator=generator) for k, v in base.items()}
        save(root / name, {k: v.bfloat16() for k, v in tensors.items()})
        written = config(64).to_dict() | settings | {"architectures": ["LlamaForCausalLM"]}
        (root / name / "config.json").write_text(json.dumps(written))
        tokenizer().save_pretrained(root / name)
    return {name: root / name for name in ("base", "a", "c")}


class Unbuilt(Live):
    """Merges in memory and builds no class: that is not the method's time."""

    def finish(self) -> None:
        pass


@pytest.mark.parametrize("method", ["ties", "slerp", "linear"])
def test_seconds_are_about_right(
    method: str, larger: Pico, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a factor of three of what the merge then takes, and quickly said: all by the seconds
    that processors spent, of which other programs take none.
    """
    clock = time.process_time
    monkeypatch.setattr(costs, "time", SimpleNamespace(monotonic=clock, perf_counter=clock))
    base = larger["a" if method == "slerp" else "base"]
    found = plan(recipe(method, [larger["a"], larger["c"]], base_model=base))
    start = clock()
    said = costs.seconds(found)
    took = clock() - start
    start = clock()
    for _ in merge(found, Unbuilt(dtype=torch.float32)):
        pass
    real = clock() - start
    assert said and real / 3 < said < real * 3
    assert took < 0.5


def test_values_that_cannot_be_timed(pico: Pico) -> None:
    """A step so long that made-up numbers overflow gives no time, and no error: the merge tells."""
    found = plan(
        recipe("task_arithmetic", [pico["a"], pico["c"]], base_model=pico["base"],
               parameters={"weight": 1e7}, dtype="float16")
    )  # fmt: skip
    assert costs.seconds(found) is None
