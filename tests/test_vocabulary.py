"""Tokens are matched by their strings, and every row comes from where its token lives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from merging import MergeError, vocabulary
from merging.vocabulary import Words, align, gather, same


def words(*tokens: str) -> Words:
    numbers = {t: i for i, t in enumerate(tokens)}
    return vocabulary.words(Tokenizer(models.WordLevel(numbers, unk_token=tokens[0])).to_str())


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
        vocabulary.load(tmp_path, "org/x")
    (tmp_path / "tokenizer_config.json").write_text(content)
    try:
        assert vocabulary.template(tmp_path, "org/x") is None
    except MergeError as error:
        assert "org/x: its tokenizer_config.json is broken" in str(error)


def test_templates_are_found_where_they_are_kept(tmp_path: Path) -> None:
    """In the config, there as `default` of several, and in a file of its own, which wins."""
    config = tmp_path / "tokenizer_config.json"
    assert vocabulary.template(tmp_path, "x") is None
    config.write_text('{"chat_template": "one"}')
    assert vocabulary.template(tmp_path, "x") == "one"
    config.write_text('{"chat_template": [{"name": "rag", "template": "no"}, '
                      '{"name": "default", "template": "two"}]}')  # fmt: skip
    assert vocabulary.template(tmp_path, "x") == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert vocabulary.template(tmp_path, "x") == "three"


def test_a_template_has_a_cap(tmp_path: Path) -> None:
    """One that is larger than any real template is not taken."""
    (tmp_path / "tokenizer_config.json").write_text(f'{{"chat_template": "{"x" * 70_000}"}}')
    assert vocabulary.template(tmp_path, "x") is None
