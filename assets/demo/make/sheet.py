"""Writes assets/demo/held-out.tsv: questions that no training had, with their answers.

`python assets/demo/make/sheet.py` takes half sums with a carry and half noun phrases, the first of
those that `score.py` asks, for `python -m merging sweep` and `compare`.
"""

from pathlib import Path

from data import prompts

EACH = 50


def main() -> None:
    """Write the file, and say where it is."""
    asked = prompts("test")
    rows = [turn for kind in ("carry", "French") for turn in asked[kind][:EACH]]
    path = Path(__file__).resolve().parents[1] / "held-out.tsv"
    path.write_text("".join(f"{q}\t{a}\n" for q, a in rows), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
