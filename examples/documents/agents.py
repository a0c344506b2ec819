"""The agents as gRPC servicers, with no server around them: any server may carry them. How to read is elsewhere."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import grpc
from documents.v1 import documents_pb2, documents_pb2_grpc

from examples.documents import reading, splitting
from examples.serving import Context, call_metadata, refuse

SERVICES = (
    "documents.v1.SplitterService",
    "documents.v1.ExtractorService",
    "documents.v1.ScorerService",
    "documents.v1.SummariserService",
    "documents.v1.ReporterService",
)

WORDS_A_MINUTE = 230
LARGEST_WHOLE = 2**63 - 1
LONGEST_DURATION_SECONDS = 315_576_000_000

_SPLIT = {
    documents_pb2.DOCUMENT_FORMAT_MARKDOWN: splitting.split_markdown,
    documents_pb2.DOCUMENT_FORMAT_PROTO: splitting.split_proto,
    documents_pb2.DOCUMENT_FORMAT_PLAIN: splitting.split_plain,
}
_FORMAT_BY_SUFFIX = {
    "md": documents_pb2.DOCUMENT_FORMAT_MARKDOWN,
    "proto": documents_pb2.DOCUMENT_FORMAT_PROTO,
}


class SplitterServicer(documents_pb2_grpc.SplitterServiceServicer):
    """SplitterService."""

    async def SplitDocument(
        self, request: documents_pb2.SplitDocumentRequest, context: Context
    ) -> documents_pb2.SplitDocumentResponse:
        """Cuts a document into sections."""
        call_metadata(context)
        document = request.document
        suffix = document.name.rpartition(".")[2].lower()
        told = document.format or _FORMAT_BY_SUFFIX.get(suffix, documents_pb2.DOCUMENT_FORMAT_PLAIN)
        limit = request.section_limit or splitting.SECTION_LIMIT
        blocks = list(splitting.bounded(_SPLIT[told](document.text), limit))
        if not any(block.text for block in blocks):
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_DOCUMENT", "the document holds no text")
        answer = documents_pb2.SplitDocumentResponse(format=told, outline=map(_entry, splitting.outline(blocks)))
        for index, block in enumerate(blocks):
            section = answer.sections.add(index=index, heading=block.heading, level=block.level, text=block.text)
            for words, target in block.links:
                section.links.add(words=words, target=target)
        return answer


def _entry(heading: splitting.Heading) -> documents_pb2.OutlineEntry:
    return documents_pb2.OutlineEntry(
        heading=heading.words, section_index=heading.section_index, children=map(_entry, heading.children)
    )


class ExtractorServicer(documents_pb2_grpc.ExtractorServiceServicer):
    """ExtractorService."""

    async def ExtractFacts(
        self, request: documents_pb2.ExtractFactsRequest, context: Context
    ) -> documents_pb2.ExtractFactsResponse:
        """Finds terms, quantities and links."""
        call_metadata(context)
        answer = documents_pb2.ExtractFactsResponse()
        for term in reading.key_terms([section.text for section in request.sections], request.term_limit or 12):
            answer.terms.add(words=term.words, count=term.count, weight=term.weight)
        found = (_quantity(each, part.index) for part in request.sections for each in reading.quantities(part.text))
        answer.quantities.extend(itertools.islice(found, request.quantity_limit or 20))
        seen = set()
        for link in (link for section in request.sections for link in section.links):
            if link.target not in seen:
                seen.add(link.target)
                answer.links.append(link)
        return answer


def _quantity(found: reading.FoundQuantity, section_index: int) -> documents_pb2.Quantity:
    quantity = documents_pb2.Quantity(written=found.written, section_index=section_index)
    if found.unit == "percent":
        quantity.percent = found.value
    elif found.unit == "seconds" and found.value <= LONGEST_DURATION_SECONDS:
        quantity.duration.FromMicroseconds(round(found.value * 1_000_000))
    elif found.unit == "whole" and found.value < LARGEST_WHOLE:
        quantity.whole = int(found.value)
    else:
        quantity.decimal = found.value
    return quantity


class ScorerServicer(documents_pb2_grpc.ScorerServiceServicer):
    """ScorerService."""

    async def ScoreSections(
        self, request: documents_pb2.ScoreSectionsRequest, context: Context
    ) -> documents_pb2.ScoreSectionsResponse:
        """Measures each section and the whole."""
        call_metadata(context)
        measures = {section.index: reading.measure(section.text) for section in request.sections}
        overall = reading.together(measures.values(), (section.text for section in request.sections))
        answer = documents_pb2.ScoreSectionsResponse(overall=_readability(overall))
        levels: Counter[str] = Counter()
        for index, measured in measures.items():
            if measured.words:
                score = answer.scores.add(section_index=index, readability=_readability(measured))
                levels[documents_pb2.ReadingLevel.Name(score.readability.level)] += 1
        answer.sections_by_level.update(levels)
        return answer


def _readability(measured: reading.Measures) -> documents_pb2.Readability:
    ease = measured.reading_ease
    if ease >= 60:
        level = documents_pb2.READING_LEVEL_PLAIN
    elif ease >= 30:
        level = documents_pb2.READING_LEVEL_DIFFICULT
    else:
        level = documents_pb2.READING_LEVEL_VERY_DIFFICULT
    return documents_pb2.Readability(
        sentences=measured.sentences,
        words=measured.words,
        words_per_sentence=round(measured.words_per_sentence, 2),
        syllables_per_word=round(measured.syllables_per_word, 3),
        reading_ease=round(ease, 2),
        variety=round(measured.variety, 2),
        level=level,
    )


class SummariserServicer(documents_pb2_grpc.SummariserServiceServicer):
    """SummariserService."""

    async def SummariseDocument(
        self, request: documents_pb2.SummariseDocumentRequest, context: Context
    ) -> documents_pb2.SummariseDocumentResponse:
        """Picks the sentences that say most."""
        call_metadata(context)
        ease = {score.section_index: score.readability.reading_ease for score in request.scores}
        terms = {term.words: term.weight for term in request.terms}
        candidates = [
            documents_pb2.SummarySentence(
                text=sentence,
                section_index=section.index,
                weight=sentence_weight(sentence, place, ease.get(section.index, 50.0), terms),
            )
            for section in request.sections
            for place, sentence in enumerate(reading.sentences_of(section.text))
            if 6 <= len(reading.words_of(sentence)) <= 60
        ]
        if not candidates:
            await refuse(
                context, grpc.StatusCode.FAILED_PRECONDITION, "NOTHING_TO_SUMMARISE", "the document has no sentences"
            )
        ranked = sorted(range(len(candidates)), key=lambda index: (-candidates[index].weight, index))
        picked = [candidates[index] for index in sorted(ranked[: request.sentence_limit or 5])]
        words = sum(len(reading.words_of(section.text)) for section in request.sections)
        picked_words = sum(len(reading.words_of(sentence.text)) for sentence in picked)
        return documents_pb2.SummariseDocumentResponse(
            sentences=picked, word_share=round(min(1.0, picked_words / max(1, words)), 4)
        )


def sentence_weight(sentence: str, place: int, ease: float, terms: dict[str, float]) -> float:
    """Returns what a sentence is worth: its terms for its length, more at the start and where it reads well."""
    words = reading.words_of(sentence)
    text = f" {' '.join(words)} "
    held = sum(weight for term, weight in terms.items() if f" {term} " in text)
    readable = min(100.0, max(0.0, ease)) / 100.0
    return round(held / (8.0 + len(words)) * (1.0 + 0.3 / (1 + place)) * (0.75 + 0.5 * readable), 6)


class ReporterServicer(documents_pb2_grpc.ReporterServiceServicer):
    """ReporterService."""

    async def ComposeReport(
        self, request: documents_pb2.ComposeReportRequest, context: Context
    ) -> documents_pb2.ComposeReportResponse:
        """Makes one report of all findings."""
        call_metadata(context)
        report = documents_pb2.Report(
            document_name=request.document_name,
            key_terms=[term.words for term in request.facts.terms],
            readability=request.readability,
            counts={
                "sections": request.section_count,
                "headings": _headings(request.outline),
                "quantities": len(request.facts.quantities),
                "links": len(request.facts.links),
                "words": request.readability.words,
                "sentences": request.readability.sentences,
            },
        )
        report.reading_period.seconds = round(request.readability.words * 60 / WORDS_A_MINUTE)
        report.markdown = _markdown(request, report)
        return documents_pb2.ComposeReportResponse(report=report)


def _headings(entries: Iterable[documents_pb2.OutlineEntry]) -> int:
    return sum(1 + _headings(entry.children) for entry in entries)


def _markdown(request: documents_pb2.ComposeReportRequest, report: documents_pb2.Report) -> str:
    level = documents_pb2.ReadingLevel.Name(report.readability.level)
    level = level.removeprefix("READING_LEVEL_").replace("_", " ").lower()
    minutes, seconds = divmod(report.reading_period.seconds, 60)
    facts = (
        f"{report.counts['words']:,} words, sections: {report.counts['sections']}, {minutes}:{seconds:02d} to read, "
        f"{level} (reading ease {report.readability.reading_ease:.0f})."
    )
    lines = [
        f"# {report.document_name}",
        "",
        facts,
        "",
        f"Speaks of {', '.join(report.key_terms)}.",
    ]
    if request.summary:
        lines += ["", "## In short", "", *(f"- {sentence.text}" for sentence in request.summary)]
    if request.outline:
        lines += ["", "## Contents", "", *_contents(request.outline, 0)]
    return "\n".join(lines) + "\n"


def _contents(entries: Iterable[documents_pb2.OutlineEntry], depth: int) -> Iterable[str]:
    for entry in entries:
        yield f"{'  ' * depth}- {entry.heading}"
        yield from _contents(entry.children, depth + 1)


def add_agents(server: grpc.aio.Server) -> None:
    """Adds all agents to a server."""
    documents_pb2_grpc.add_SplitterServiceServicer_to_server(SplitterServicer(), server)
    documents_pb2_grpc.add_ExtractorServiceServicer_to_server(ExtractorServicer(), server)
    documents_pb2_grpc.add_ScorerServiceServicer_to_server(ScorerServicer(), server)
    documents_pb2_grpc.add_SummariserServiceServicer_to_server(SummariserServicer(), server)
    documents_pb2_grpc.add_ReporterServiceServicer_to_server(ReporterServicer(), server)
