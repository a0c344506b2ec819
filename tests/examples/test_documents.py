"""What the reading agents make of small texts."""

from __future__ import annotations

import pytest

from examples.documents import reading, splitting

MARKDOWN = """Before all headings, see <https://example.org/a>.

# First *part*

One sentence. See [the guide](docs/guide.md), i.e. the long one.

- an item
- another item

```
code is not prose
```

### Deeper

| a | b |
|---|---|
| 1 | 2 |

Second
------

The end.
"""

PROTO = """// About the file.
syntax = "proto3";

// Shop sells.
service Shop {
  // Buy takes money.
  rpc Buy(A) returns (B) {
    option idempotency_level = IDEMPOTENT;
  }
  // Trailing words belong to the service.
}

// A asks.
message A {
  // Name of it.
  string name = 1;
}
"""


def test_markdown_is_cut_at_its_headings() -> None:
    """Headings of both forms, links, no code."""
    blocks = splitting.split_markdown(MARKDOWN)
    assert [(block.heading, block.level) for block in blocks] == [
        ("", 0),
        ("First *part*", 1),
        ("Deeper", 3),
        ("Second", 2),
    ]
    assert blocks[0].links == [("", "https://example.org/a")]
    assert blocks[1].links == [("the guide", "docs/guide.md")]
    assert "code" not in blocks[1].text
    assert reading.sentences_of(blocks[1].text) == [
        "One sentence.",
        "See the guide, i.e. the long one.",
        "an item",
        "another item",
    ]
    (first,) = splitting.outline(blocks)
    assert [child.words for child in first.children] == ["Deeper", "Second"]


def test_proto_comments_go_to_what_they_describe() -> None:
    """A comment before a declaration is its; one inside a body is the body's."""
    texts = {block.heading: block.text for block in splitting.split_proto(PROTO)}
    assert texts["service Shop"].split("\n\n")[0] == "Shop sells."
    assert texts["rpc Buy"] == "Buy takes money."
    assert texts["message A"] == "A asks.\n\nName of it."


@pytest.mark.parametrize("limit", [20, 50, 1000])
def test_sections_keep_every_word_and_the_limit(limit: int) -> None:
    """Cutting loses nothing."""
    text = "\n\n".join(f"Paragraph {number} has some words in it, not many." for number in range(30))
    parts = [block.text for block in splitting.bounded(splitting.split_plain(text), limit)]
    assert " ".join(parts).split() == text.split()
    assert max(map(len, parts)) <= limit


@pytest.mark.parametrize(
    ("word", "count"),
    [("cat", 1), ("table", 2), ("readability", 5), ("cake", 1), ("played", 1), ("wanted", 2), ("boxes", 2)],
)
def test_syllables(word: str, count: int) -> None:
    """Silent endings do not count."""
    assert reading.syllables_of(word) == count


def test_quantities_are_told_from_dates_and_versions() -> None:
    """Units of time become seconds."""
    found = reading.quantities("In 1.5 ms, 36,000 rows and 12 %; version 3.11.7 of 2026-11-22 took 2 hours at 0.25.")
    assert [(each.value, each.unit) for each in found] == [
        (0.0015, "seconds"),
        (36000.0, "whole"),
        (12.0, "percent"),
        (7200.0, "seconds"),
        (0.25, "decimal"),
    ]


def test_key_terms_prefer_pairs_that_recur() -> None:
    """A pair of words hides the words that only occur in it."""
    texts = ["The group commit writes rows. A group commit is fast.", "Rows are read. Rows are kept."]
    terms = [term.words for term in reading.key_terms(texts, 3)]
    assert terms[0] == "group commit"
    assert "commit" not in terms
    assert "rows" in terms
