"""Unions of three different vocabularies, for every kind of fast tokenizer; knows no weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from merging import MergeError, tokens, vocabulary
from merging.tokens import Words
from merging.vocabulary import PAD, align

TEXTS = {
    "x": ["the old house by the river", "a river of stones", "houses and rivers and stones"],
    "y": ["la maison près du café", "un été à la mer", "déjà vu à la maison du café"],
    "z": ["日本の家と川", "smile 😀 and sun 🌞", "ein Häuschen am Fluß", "日本の川の石"],
}
CHAT = ["<|im_start|>", "<|im_end|>"]


def byte_level(texts: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts * 3, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet)
    )
    return made


def sentencepiece_bpe(texts: list[str]) -> Tokenizer:
    """As Llama's and Mistral's: `▁` for a space, bytes for what no piece has."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    first = ["<unk>", *(f"<0x{n:02X}>" for n in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=len(first) + 60, special_tokens=first)
    made.train_from_iterator(texts * 3, trainer)
    return made


def unigram(texts: list[str]) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    made.train_from_iterator(texts * 3, trainer)
    return made


def wordpiece(texts: list[str]) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]"])
    made.train_from_iterator(texts * 3, trainer)
    return made


KINDS = [byte_level, sentencepiece_bpe, unigram, wordpiece]
EACH = pytest.mark.parametrize("kind", KINDS)
Kind = Callable[[list[str]], Tokenizer]


def trio(kind: Kind) -> dict[str, Tokenizer]:
    """Three tokenizers trained on different texts; y has ChatML's tokens, and z one of its own."""
    made = {name: kind(texts) for name, texts in TEXTS.items()}
    made["x"].add_special_tokens(["<|own|>"])
    made["y"].add_special_tokens(CHAT)
    made["z"].add_special_tokens(["<|z|>"])
    return made


def united(made: dict[str, Tokenizer], pad: int = 1) -> vocabulary.Vocabulary:
    read = {name: tokens.words(t.to_str()) for name, t in made.items()}
    sizes = {name: max(t.get_vocab().values()) + 1 for name, t in made.items()}
    return align(read, sizes, "x", union=True, pad=pad)


@EACH
def test_text_in_every_parents_tokens_comes_back(kind: Kind) -> None:
    """A parent's tokens, found by their strings in the union, say what they said in the parent."""
    made = trio(kind)
    merged = Tokenizer.from_str(united(made).tokenizer)
    for name, own in made.items():
        for text in [*TEXTS[name], f"{TEXTS[name][0]} {TEXTS['x'][0]}"]:
            tokens = [own.id_to_token(number) for number in own.encode(text).ids]
            numbers = [merged.token_to_id(token) for token in tokens]
            assert None not in numbers
            assert merged.decode(numbers) == own.decode(own.encode(text).ids)


@EACH
def test_every_token_has_one_row(kind: Kind) -> None:
    """The donor's numbers stay, and each row of each parent is that of the token's string."""
    made = trio(kind)
    found = united(made)
    numbers = Tokenizer.from_str(found.tokenizer).get_vocab(with_added_tokens=True)
    assert numbers.items() >= made["x"].get_vocab().items()
    for name, own in made.items():
        for token, row in own.get_vocab(with_added_tokens=True).items():
            assert found.rows[name][numbers[token]] == row
        known = {numbers[token] for token in own.get_vocab(with_added_tokens=True)}
        assert {i for i, row in enumerate(found.rows[name].tolist()) if row >= 0} == known
    for token, owners in found.added.items():
        assert owners == tuple(name for name, t in made.items() if token in t.get_vocab())


@EACH
def test_special_tokens_are_found_in_text_and_pieces_are_not(kind: Kind) -> None:
    """ChatML's tokens work as in their parent. The donor's own text is cut as the donor cuts it,
    save by WordPiece, which takes the longest piece there is.
    """
    made = trio(kind)
    merged = Tokenizer.from_str(united(made).tokenizer)
    encoded = merged.encode("<|im_start|>the river<|im_end|>")
    assert encoded.tokens[0] == CHAT[0] and encoded.tokens[-1] == CHAT[1]
    assert merged.decode(encoded.ids) == merged.decode(encoded.ids[1:-1])  # special: not shown
    for text in TEXTS["x"]:
        if kind is not wordpiece:
            assert merged.encode(text).ids == made["x"].encode(text).ids
        assert merged.decode(merged.encode(text).ids) == text


def test_kinds_do_not_mix() -> None:
    """Pieces of one kind mean nothing in a tokenizer of another; its special tokens do."""
    made = {"x": byte_level(TEXTS["x"]), "y": unigram(TEXTS["y"])}
    with pytest.raises(MergeError, match=r"y cuts text by Unigram and x by byte-level BPE"):
        united(made)
    special = byte_level(TEXTS["x"])
    special.add_special_tokens(CHAT)
    assert united({"x": made["x"], "y": special}).added == dict.fromkeys(CHAT, ("y",))


@EACH
def test_rows_up_to_a_multiple(kind: Kind) -> None:
    """Further rows belong to no token and to no parent."""
    made = trio(kind)
    plain, padded = united(made), united(made, pad=64)
    assert padded.size % 64 == 0 and 0 <= padded.size - plain.size < 64
    for name in made:
        assert torch.equal(padded.rows[name][: plain.size], plain.rows[name])
        assert (padded.rows[name][plain.size :] == PAD).all()


def test_large_vocabularies_are_aligned_by_their_strings() -> None:
    """151,936 tokens in two orders, with an oracle in plain Python."""
    count = 151_936
    one = {f"t{n}": n for n in range(count)}
    other = {f"t{n}": (n * 7919) % count for n in range(count)} | {"new": count}
    words = {
        "x": Words({"model": {"type": "BPE", "vocab": one, "merges": []}}, one),
        "y": Words({"model": {"type": "BPE", "vocab": other, "merges": []}}, other),
    }
    found = align(words, {"x": count, "y": count + 1}, "x", union=True)
    assert found.size == count + 1 and found.added == {"new": ("y",)}
    assert found.rows["x"].tolist() == [*range(count), -1]
    assert found.rows["y"].tolist() == [other[f"t{n}"] for n in range(count)] + [count]
