"""Tokens are matched by their strings, and every row comes from where its token lives."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from merging import MergeError, formats, vocabulary
from merging.tokens import Words, load, same
from merging.tokens import words as parsed
from merging.vocabulary import align, gather


def words(*tokens: str) -> Words:
    numbers = {t: i for i, t in enumerate(tokens)}
    return parsed(Tokenizer(models.WordLevel(numbers, unk_token=tokens[0])).to_str())


def test_rows_follow_the_strings() -> None:
    """The same words in another order pair by name, not by number."""
    found = align({"x": words("a", "b", "c"), "y": words("c", "a", "b")}, {"x": 3, "y": 3}, "x",
                  union=True)  # fmt: skip
    assert found.size == 3 and not found.added
    assert found.rows["x"].tolist() == [0, 1, 2] and found.rows["y"].tolist() == [1, 2, 0]


def test_a_union_adds_after_the_donors() -> None:
    """Tokens that the donor lacks follow it in their owner's order, each once, owners told."""
    tokenizers = {"x": words("a", "b"), "y": words("a", "q", "p"), "z": words("a", "p")}
    found = align(tokenizers, {"x": 2, "y": 3, "z": 2}, "x", union=True)
    assert found.added == {"q": ("y",), "p": ("y", "z")}
    assert found.size == 4
    assert found.rows["x"].tolist() == [0, 1, -1, -1]
    assert found.rows["y"].tolist() == [0, -1, 1, 2]
    assert found.rows["z"].tolist() == [0, -1, -1, 1]
    merged = Tokenizer.from_str(found.tokenizer)
    assert [merged.id_to_token(i) for i in range(4)] == ["a", "b", "q", "p"]


def test_without_union_the_donor_decides() -> None:
    """Tokens that the donor lacks are left out."""
    found = align({"x": words("a", "b"), "y": words("b", "q")}, {"x": 2, "y": 2}, "x", union=False)
    assert (found.size, dict(found.added)) == (2, {})
    assert found.rows["y"].tolist() == [-1, 0]


def test_padding_rows_stay() -> None:
    """Rows that no token uses keep their place in the donor, and nobody else's fill them; added
    tokens take the next numbers, which are padding.
    """
    pair = {"x": words("a", "b"), "y": words("b", "q")}
    found = align(pair, {"x": 4, "y": 9}, "x", union=True)
    assert found.size == 4
    assert found.rows["x"].tolist() == [0, 1, -1, 3]
    assert found.rows["y"].tolist() == [-1, 0, 1, -1]


def test_a_token_beyond_the_embeddings_has_no_row() -> None:
    """A tokenizer that knows more tokens than the model has rows does not read past the end."""
    pair = {"x": words("a", "b"), "y": words("a", "b", "q")}
    found = align(pair, {"x": 2, "y": 2}, "x", union=True)
    assert found.rows["y"].tolist() == [0, 1, -1]


def test_same_is_about_numbers() -> None:
    """Equal vocabularies are the same; one swapped number is enough for another."""
    assert same([words("a", "b"), words("a", "b")])
    assert not same([words("a", "b"), words("b", "a")])


def test_gathering_fills_what_a_model_lacks() -> None:
    """The base's row where it has one, else the mean of the owners, else zero."""
    x, y, base = (torch.tensor([[n], [n + 1.0]]).bfloat16() for n in (10.0, 20.0, 30.0))
    rows = [torch.tensor(r) for r in ([0, -1, -1, -1], [-1, 1, 0, -1], [1, 0, -1, -1])]
    found = gather([x, y, base], rows, 2)
    assert [f.flatten().tolist() for f in found] == [
        [10, 30, 20, 0], [31, 21, 20, 0], [31, 30, 20, 0]
    ]  # fmt: skip
    assert all(f.dtype == torch.float32 for f in found)
    without = gather([x, y], [torch.tensor([0, -1]), torch.tensor([1, -1])], None)
    assert [f.flatten().tolist() for f in without] == [[10, 0], [21, 0]]


def test_gathering_keeps_width() -> None:
    """Rows of any width are moved whole, and a vector is a matrix of width one."""
    wide = torch.arange(12.0).view(3, 4)
    [found] = gather([wide], [torch.tensor([2, 0])], None)
    assert torch.equal(found, wide[[2, 0]])
    [flat] = gather([wide[:, 0]], [torch.tensor([1, -1])], None)
    assert flat.tolist() == [4, 0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"chat_template": 3}'])
def test_broken_tokenizer_files_are_told(content: str, tmp_path: Path) -> None:
    """A broken tokenizer.json names its model; a config without template text has none."""
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(MergeError, match=r"org/x: its tokenizer\.json"):
        load(tmp_path, "org/x")
    (tmp_path / "tokenizer_config.json").write_text(content)
    try:
        assert formats.template(tmp_path, "org/x") is None
    except MergeError as error:
        assert "org/x: its tokenizer_config.json is broken" in str(error)


LETTERS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True)


@st.composite
def tokenizers(draw: st.DrawFn) -> str:
    """BPE with gaps between its pieces' numbers, and added tokens whose `id` may be untrue."""
    pieces = draw(LETTERS)
    numbers = draw(st.lists(st.integers(0, 12), min_size=len(pieces), max_size=len(pieces),
                            unique=True))  # fmt: skip
    added = draw(
        st.lists(st.sampled_from(["a", "b", "<u>", "<v>", "<w>"]), max_size=4, unique=True)
    )
    made = Tokenizer(models.BPE(dict(zip(pieces, numbers, strict=True)), []))
    made.add_special_tokens(added)
    content = json.loads(made.to_str())
    for entry in content["added_tokens"]:
        entry["id"] += draw(st.integers(0, 1)) * 5
    return json.dumps(content)


@given(st.lists(tokenizers(), min_size=2, max_size=3), st.data(), st.booleans())
def test_rows_are_those_of_an_oracle(texts: list[str], data: st.DataObject, union: bool) -> None:
    """Numbers are those that the library gives, in each parent and in what is written."""
    known = dict(zip("xyz", (Tokenizer.from_str(t).get_vocab() for t in texts), strict=False))
    assume(all(len(set(own.values())) == len(own) for own in known.values()))
    read = dict(zip("xyz", map(parsed, texts), strict=False))
    sizes = {name: data.draw(st.integers(0, 20)) for name in known}
    pad = data.draw(st.integers(1, 9))
    found = align(read, sizes, "x", union, pad)
    merged = Tokenizer.from_str(found.tokenizer).get_vocab()
    assert {name: dict(t.numbers) for name, t in read.items()} == known
    tokens = dict(known["x"])
    for own in known.values() if union else ():
        for token in sorted(own, key=own.__getitem__):
            tokens.setdefault(token, max(tokens.values()) + 1)
    assert merged == dict(found.words.numbers) == tokens
    size = max(sizes["x"], max(tokens.values()) + 1)
    assert found.size == -(-size // pad) * pad
    for name, own in known.items():
        wanted = [n if name == "x" and n < sizes["x"] else -1 for n in range(size)]
        for token, number in tokens.items():
            wanted[number] = own[token] if own.get(token, 99) < sizes[name] else -1
        assert found.rows[name].tolist() == wanted + [vocabulary.PAD] * (found.size - size)


def test_added_tokens_keep_their_settings() -> None:
    """Another model's added token is found in text as it was there, and its twin is not made."""
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made.add_tokens(["<t>"])
    [entry] = json.loads(made.to_str())["added_tokens"]
    entry |= {"lstrip": True, "single_word": True}
    other = parsed(json.dumps(json.loads(made.to_str()) | {"added_tokens": [entry]}))
    found = align({"x": words("a", "b"), "y": other}, {"x": 2, "y": 2}, "x", union=True)
    assert json.loads(found.tokenizer)["added_tokens"] == [entry | {"id": 2}]


def test_words_of_another_model_come_back_and_leave_known_text_alone() -> None:
    """WordLevel, the fifth kind: text that the donor knows is cut as before."""
    pair = {"x": words("<unk>", "house"), "y": words("<unk>", "maison", "家", "😀")}
    merged = Tokenizer.from_str(align(pair, {"x": 2, "y": 4}, "x", union=True).tokenizer)
    assert merged.encode("house").ids == [1]
    assert [merged.encode(w).ids for w in ("maison", "家", "😀")] == [[2], [3], [4]]
    assert merged.decode([2, 3, 4]) == "maison 家 😀"


def test_a_long_piece_of_another_unigram_model_is_never_chosen() -> None:
    """However long it is, the donor's pieces, a character each, are likelier."""
    x = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -12.0), ("b", -15.0)], 0))
    y = Tokenizer(models.Unigram([("<unk>", 0.0), ("ab" * 20, -1.0)], 0))
    read = {"x": parsed(x.to_str()), "y": parsed(y.to_str())}
    merged = Tokenizer.from_str(align(read, {"x": 3, "y": 2}, "x", union=True).tokenizer)
    assert merged.encode("ab" * 20).ids == x.encode("ab" * 20).ids == [1, 2] * 20


def test_a_model_that_does_not_name_its_kind_is_known_by_its_keys() -> None:
    """Old files, GPT-2's among them, have no `type`, and are no other kind for that."""
    text = Tokenizer(models.BPE({"a": 0, "b": 1}, [])).to_str()
    content = json.loads(text)
    del content["model"]["type"]
    pair = {"x": parsed(json.dumps(content)), "y": parsed(
        Tokenizer(models.BPE({"a": 0, "c": 1}, [])).to_str())}  # fmt: skip
    assert align(pair, {"x": 2, "y": 2}, "x", union=True).added == {"c": ("y",)}


@pytest.mark.parametrize("change", [
    {"model": {"type": "BPE", "vocab": {"a": 1.5}, "merges": []}},
    {"model": {"type": "BPE", "vocab": {"a": None}, "merges": []}},
    {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    {"model": {"type": "BPE", "vocab": {"a": 1 << 31}, "merges": []}},
    {"model": {"type": "Unigram", "vocab": [["a", "b"]]}},
    {"model": {"type": "BPE", "vocab": {"\ud800": 0}, "merges": []}},
    {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["q", "z"]]}},
    {"model": {"type": "Nothing", "vocab": {"a": 0}}},
    {"pre_tokenizer": {"type": "Nothing"}},
    {"added_tokens": [{"content": "<x>"}]},
])  # fmt: skip
@pytest.mark.parametrize("union", [True, False])
def test_what_only_json_can_read_is_told(
    change: dict[str, Any], union: bool, tmp_path: Path
) -> None:
    """One sentence, at the latest when the merged tokenizer is made; no bare error, no huge row."""
    content = json.loads(Tokenizer(models.BPE({"a": 0, "b": 1}, [])).to_str()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    good = parsed(Tokenizer(models.BPE({"a": 0, "c": 1}, [])).to_str())
    with pytest.raises(MergeError, match=r"org/x"):
        read = load(tmp_path, "org/x")
        assert read is not None
        align({"org/x": read, "y": good}, {"org/x": 2, "y": 2}, "org/x", union)


def test_disjoint_vocabularies_take_seconds_not_minutes() -> None:
    """Work grows with the tokens, not with tokens times added tokens."""

    def made(name: str) -> Words:
        pieces = Tokenizer(models.BPE({f"{name}{n}": n for n in range(50_000)}, []))
        pieces.add_special_tokens([f"<{name}{n}>" for n in range(1000)])
        return parsed(pieces.to_str())

    pair = {name: made(name) for name in "xyz"}
    began = time.perf_counter()
    found = align(pair, dict.fromkeys("xyz", 51_000), "x", union=True)
    assert found.size == 153_000
    assert time.perf_counter() - began < 4
