"""Measures and mines English text: sentences, syllables, reading ease, key terms, quantities. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_WORD = re.compile(r"[A-Za-z][A-Za-z'’]*(?:-[A-Za-z]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9`])")
_CLAUSE_END = re.compile(r"[.!?;:,()]+(?=\s|$)|\n\s*\n|\s[-–—/=]\s")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|approx|no|fig|dr|mr|mrs|st)\.)$", re.IGNORECASE)
_VOWELS = re.compile(r"[aeiouy]+")
_NUMBER = re.compile(
    r"(?<![\w.,/:-])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?"
    r"(?:\s?(%|percent\b)|\s?(us|µs|ms|seconds?|s|minutes?|min|hours?|h|days?)\b)?"
    r"(?![\w/:]|[.-]\d)"
)
_SECONDS = {
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "second": 1.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "day": 86400.0,
}
_IDLE_TEXT = """
a about above after again all also an and any are as at be because been before being below between both but by can
cannot could did do does done down each else even every few first for from further get gives goes had has have having
he her here him his how i if in into is it its itself just last least less let like long made make makes many may me
more most much must my never new next no nor not now of off on once one only onto or other our out over own per rather
same see she should since so some such take takes than that the their them then there these they this those through to
too two under until up upon us use used uses using very was we well were what when where whether which while who whole
whose why will with within without would you your
"""
_IDLE_WORDS = frozenset(_IDLE_TEXT.split())


@dataclass(frozen=True, slots=True)
class Measures:
    """What readability is computed from; `variety` is different words in a hundred."""

    sentences: int
    words: int
    syllables: int
    different_words: int

    @property
    def words_per_sentence(self) -> float:
        """Average length of a sentence."""
        return self.words / max(1, self.sentences)

    @property
    def syllables_per_word(self) -> float:
        """Average length of a word."""
        return self.syllables / max(1, self.words)

    @property
    def reading_ease(self) -> float:
        """Flesch reading ease: 100 is easy, 0 is hard, and it can go below."""
        return 206.835 - 1.015 * self.words_per_sentence - 84.6 * self.syllables_per_word

    @property
    def variety(self) -> float:
        """Different words in a hundred words."""
        return 100.0 * self.different_words / max(1, self.words)


@dataclass(frozen=True, slots=True)
class KeyTerm:
    """A word, or two in a row, with how often it occurs and how much it says."""

    words: str
    count: int
    weight: float


@dataclass(frozen=True, slots=True)
class FoundQuantity:
    """A number of the text: `unit` is `whole`, `decimal`, `percent` or `seconds`."""

    value: float
    unit: str
    written: str


def words_of(text: str) -> list[str]:
    """Returns the words in lower case, without the `'s` of a genitive."""
    return [word.lower().replace("’", "'").removesuffix("'s").strip("'") for word in _WORD.findall(text)]


def sentences_of(text: str) -> list[str]:
    """Returns the sentences; a paragraph ends one even without a full stop, and an abbreviation does not."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        held = ""
        for piece in _SENTENCE_END.split(" ".join(paragraph.split())):
            held = f"{held} {piece}".strip()
            if not _ABBREVIATION.search(held):
                found.append(held)
                held = ""
        if held:
            found.append(held)
    return [sentence for sentence in found if _WORD.search(sentence)]


def syllables_of(word: str) -> int:
    """Returns the syllables of an English word, by its groups of vowels and its silent endings."""
    letters = re.sub(r"[^a-z]", "", word.lower())
    count = len(_VOWELS.findall(letters))
    if (
        (len(letters) > 2 and letters.endswith("e") and not letters.endswith(("le", "ee", "ie", "ye")))
        or (len(letters) > 3 and letters.endswith("ed") and letters[-3] not in "td")
        or (
            len(letters) > 3
            and letters.endswith("es")
            and letters[-3] not in "cgsxz"
            and letters[-4:-2] not in ("sh", "ch")
        )
    ):
        count -= 1
    return max(1, count)


def measure(text: str) -> Measures:
    """Counts the sentences, words and syllables of a text."""
    words = words_of(text)
    return Measures(
        sentences=len(sentences_of(text)),
        words=len(words),
        syllables=sum(syllables_of(word) for word in words),
        different_words=len(set(words)),
    )


def together(parts: Iterable[Measures], texts: Iterable[str]) -> Measures:
    """Returns the measures of several texts as one."""
    held = list(parts)
    return Measures(
        sentences=sum(part.sentences for part in held),
        words=sum(part.words for part in held),
        syllables=sum(part.syllables for part in held),
        different_words=len({word for text in texts for word in words_of(text)}),
    )


def key_terms(texts: Sequence[str], limit: int) -> list[KeyTerm]:
    """Returns the terms that say most, by frequency and by how few of the texts hold them (TF-IDF).

    Two words in a row are a term where they occur twice or more; then neither of them alone is one, unless it stands
    elsewhere at least as often. Ties are broken by the alphabet.
    """
    counts: Counter[str] = Counter()
    holders: Counter[str] = Counter()
    for text in texts:
        words = words_of(text)
        single = [word for word in words if len(word) > 2 and word not in _IDLE_WORDS]
        pairs = [
            f"{first} {second}"
            for clause in _CLAUSE_END.split(text)
            for first, second in pairwise(words_of(clause))
            if first not in _IDLE_WORDS and second not in _IDLE_WORDS and min(len(first), len(second)) > 2
        ]
        counts.update(single)
        counts.update(pairs)
        holders.update({*single, *pairs})
    weights = {
        term: count * (1.0 + math.log((1 + len(texts)) / (1 + holders[term]))) * (1.6 if " " in term else 1.0)
        for term, count in counts.items()
        if " " not in term or count > 1
    }
    chosen: list[KeyTerm] = []
    for term, weight in sorted(weights.items(), key=lambda item: (-item[1], item[0])):
        if len(chosen) == limit:
            break
        covered = sum(each.count for each in chosen if " " in each.words and term in each.words.split())
        if counts[term] - covered < max(1, covered):
            continue
        chosen.append(KeyTerm(term, counts[term], round(weight, 4)))
    return chosen


def quantities(text: str) -> list[FoundQuantity]:
    """Returns the numbers of a text in their order; version numbers, dates and times of day are none."""
    found = []
    for match in _NUMBER.finditer(text):
        digits, fraction, percent, unit = match.groups()
        value = float(digits.replace(",", "") + (fraction or ""))
        if percent:
            kind = "percent"
        elif unit:
            kind = "seconds"
            value *= _SECONDS[unit if unit in _SECONDS else unit.removesuffix("s")]
        else:
            kind = "decimal" if fraction else "whole"
        found.append(FoundQuantity(value, kind, match.group().strip()))
    return found
