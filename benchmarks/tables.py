"""Figures as tables of at most 120 columns: medians, with the lowest and highest of the repetitions in brackets.

The tables are Markdown, and are shown alike in a terminal and in the README.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.record import NOT_OFFERED, Medians, Record
from benchmarks.works import OPEN

NONE = "-"
_PARTS = ("server", "server2", "worker", "client", "postgres")
_BUSY_CORES = 0.25


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of each system. `times` converts its unit."""

    title: str
    work: str
    metric: str
    digits: int
    spread: bool = True
    times: float = 1.0

    def cell(self, medians: Medians, system: str) -> str:
        """Renders the figure of one system, `-` where it was not measured."""
        median, spread = medians.of(system, self.work, self.metric), medians.spread(system, self.work, self.metric)
        if median is None or spread is None:
            return NONE
        shown, lowest, highest = (f"{value * self.times:,.{self.digits}f}" for value in (median, *spread))
        return f"{shown} ({lowest}-{highest})" if self.spread and lowest != highest else shown


ALONE = (
    Column("W1 p50 ms", "W1", "p50_ms", 2),
    Column("W1 p99 ms", "W1", "p99_ms", 1),
    Column("W1 worst ms", "W1", "worst_ms", 0, spread=False),
    Column("W2 ms a step", "W2", "ms_per_step", 2),
    Column("W3 steps/s", "W3", "steps_per_second", 0),
    Column("W5 s", "W5", "first_run_seconds", 2),
)
TOGETHER = (
    Column("W4 steps/s", "W4", "steps_per_second", 0),
    Column("p50 ms", "W4", "p50_ms", 0),
    Column("p99 ms", "W4", "p99_ms", 0),
    Column("worst ms", "W4", "worst_ms", 0, spread=False),
    Column("CPU s / 1,000 steps", "W4", "cpu_seconds_per_1000_steps", 2),
    Column("runs", "W4", "runs", 0, spread=False),
)
COMMITS = (
    Column("commits a step", "W4", "commits_per_step", 2, spread=False),
    Column("WAL B a step", "W4", "wal_bytes_per_step", 0, spread=False),
)
TITLES = {
    "baton-stream": "Baton, workers on a stream",
    "baton-sdk": "Baton, its SDK on both sides",
    "baton-unary": "Baton, a call for each step",
    "restate": "Restate",
    "dbos": "DBOS, in process, two of them",
    "dbos-queue": "DBOS, client, queue and worker",
    "sketch-stream": "sketch, a stream",
    "sketch-batch": "sketch, streams on both sides",
    "sketch-unary": "sketch, a call for each step",
}
"""What the README calls the systems that it shows."""

PUBLIC = (
    Column("1 step, ms", "W1", "p50_ms", 1, spread=False),
    Column("10 in a row, ms each", "W2", "ms_per_step", 2, spread=False),
    Column("100 at once, steps/s", "W3", "steps_per_second", 0, spread=False),
    Column("64 clients, steps/s", "W4", "steps_per_second", 0),
    Column("their p99, ms", "W4", "p99_ms", 0, spread=False),
    Column("CPU s for 1,000 steps", "W4", "cpu_seconds_per_1000_steps", 2, spread=False),
    Column("server MB", "W4", "server_peak_memory_mb", 0, spread=False),
)
_FLOOR = (
    ("postgres", "commit", "p50_ms", 2, "one row in a durable commit, p50 ms"),
    ("postgres", "commit100", "steps_per_second", 0, "100 rows in a durable commit, rows/s"),
    ("grpc", "echo", "p50_ms", 2, "unary call, p50 ms"),
    ("grpc", "echo64", "steps_per_second", 0, "unary calls, 64 in flight, calls/s"),
    ("grpc", "echo64", "cpu_seconds_per_1000_steps", 3, "the same, CPU s for 1,000"),
    ("grpc", "stream", "p50_ms", 2, "round trip on a stream, 1 item, p50 ms"),
    ("grpc", "stream50", "p50_ms", 2, "round trip on a stream, 50 items, p50 ms"),
    ("grpc", "stream50", "steps_per_second", 0, "the same, items/s"),
)


def report(machine: Mapping[str, object], records: Sequence[Record], absent: Mapping[str, str]) -> str:
    """Renders everything of one series."""
    medians = Medians(records)
    systems = [system for system in medians.systems() if system not in ("postgres", "grpc")]
    parts = [
        "; ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        "Medians of the repetitions (lowest-highest). " + BUSY_NOTE.get(_is_busy(medians), ""),
    ]
    parts += _section("Disk and wire by themselves", _floor(medians))
    parts += _section("One run at a time, and the start", _systems(medians, systems, ALONE))
    parts += _section("64 at once: runs of 3 steps", _systems(medians, systems, TOGETHER))
    parts += _section(
        "What a step of these costs: CPU seconds for 1,000, and what is written", _costs(medians, systems)
    )
    parts += _section("Most memory of each process meanwhile, MB", _memory(medians, systems))
    parts += _section("Arrivals by chance, whether or not answers come: 3 steps a run", _arrivals(medians, systems))
    parts += _section("Ratios", _ratios(medians))
    parts += [f"Not measured: {system}: {reason}" for system, reason in absent.items()]
    return "\n".join(parts) + "\n"


BUSY_NOTE = {True: "OTHER WORK WAS DONE ON THIS MACHINE MEANWHILE.", False: "Nothing else of weight ran meanwhile."}


def public(machine: Mapping[str, object], records: Sequence[Record], absent: Mapping[str, str]) -> str:
    """Renders the table that the README shows: every system, whichever looks best."""
    medians = Medians(records)
    rows = [
        [title, *(column.cell(medians, system) for column in PUBLIC)]
        for system, title in TITLES.items()
        if medians.of(system, "W4", "steps_per_second")
    ]
    lines = aligned([["medians (lowest-highest)", *(column.title for column in PUBLIC)], *rows])
    software = {"Python": "python", "Postgres": "postgres", "Restate": "restate", "DBOS": "dbos"}
    versions = ", ".join(f"{name} {machine[key]}" for name, key in software.items() if key in machine)
    lines += ["", f"{machine['date']}: {machine['processor']}, {machine['cores']} cores, {versions}."]
    lines += [f"Not measured: {system} ({reason})." for system, reason in absent.items()]
    return "\n".join(lines) + "\n"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Renders rows, the first of which is the head, as Markdown whose columns are also aligned as plain text."""
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]

    def line(cells: Iterable[str]) -> str:
        padded = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (width + 1) + (":" if column else "-") for column, width in enumerate(widths))
    return [line(rows[0]), f"|{rule}|", *(line(row) for row in rows[1:])]


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _systems(medians: Medians, systems: Iterable[str], columns: Sequence[Column]) -> list[str]:
    rows = [[system, *(column.cell(medians, system) for column in columns)] for system in systems]
    rows = [row for row in rows if set(row[1:]) != {NONE}]
    return aligned([["", *(column.title for column in columns)], *rows]) if rows else []


def _floor(medians: Medians) -> list[str]:
    rows = []
    for system, work, metric, digits, title in _FLOOR:
        cell = Column(title, work, metric, digits).cell(medians, system)
        if cell != NONE:
            rows.append([title, cell])
    return aligned([["", "median (lowest-highest)"], *rows]) if rows else []


def _costs(medians: Medians, systems: Sequence[str]) -> list[str]:
    columns = [Column(part, "W4", f"{part}_cpu_seconds_per_1000_steps", 2, spread=False) for part in _PARTS]
    columns.append(Column("all", "W4", "cpu_seconds_per_1000_steps", 2, spread=False))
    written = Column("disk B a step", "W4", "server_written_bytes_per_step", 0, spread=False)
    return _systems(medians, systems, [*_used(medians, systems, columns), *COMMITS, written])


def _memory(medians: Medians, systems: Sequence[str]) -> list[str]:
    columns = [Column(part, "W4", f"{part}_peak_memory_mb", 0, spread=False) for part in _PARTS]
    columns += [
        Column("postgres, all of it", "W4", "postgres_memory_mb", 0, spread=False),
        Column("server, idle", "W5", "idle_memory_mb", 0, spread=False),
    ]
    return _systems(medians, systems, _used(medians, systems, columns))


def _used(medians: Medians, systems: Sequence[str], columns: Sequence[Column]) -> list[Column]:
    return [column for column in columns if any(column.cell(medians, system) != NONE for system in systems)]


def _arrivals(medians: Medians, systems: Sequence[str]) -> list[str]:
    columns = []
    for work in OPEN:
        columns += [
            Column(f"{work.rate:,.0f}/s: p50 ms", work.name, "p50_ms", 1),
            Column("p99 ms", work.name, "p99_ms", 0),
            Column("missed", work.name, "missed", 0, spread=False),
        ]
    lines = _systems(medians, systems, columns)
    for work in OPEN:
        spared = [system for system in systems if medians.of(system, work.name, NOT_OFFERED)]
        if spared:
            lines += ["", f"{work.rate:,.0f}/s were not offered (W4 did less than half of that): {', '.join(spared)}."]
    return lines


def _ratios(medians: Medians) -> list[str]:
    def rate(system: str, work: str = "W4") -> float | None:
        return medians.of(system, work, "steps_per_second")

    def sum_of(*figures: tuple[str, str]) -> float | None:
        terms = [medians.of(system, work, "p50_ms") for system, work in figures]
        return None if None in terms else sum(term for term in terms if term is not None)

    commit, stream, call = ("postgres", "commit"), ("grpc", "stream"), ("grpc", "echo")
    dbos = max((way for name in ("dbos", "dbos-queue") if (way := rate(name))), default=None)
    found: list[tuple[str, float | None, float | None]] = []
    for baton, trip, name in (("baton-stream", stream, "stream round trip"), ("baton-unary", call, "unary call")):
        sketch = baton.replace("baton", "sketch")
        step = medians.of(baton, "W2", "ms_per_step")
        found += [
            (f"{baton}, W2: a step / (durable commit + {name})", step, sum_of(commit, trip)),
            (f"{baton}, W1: p50 / {sketch}'s", sum_of((baton, "W1")), sum_of((sketch, "W1"))),
            (f"{baton}, W1: p50 / Restate's", sum_of((baton, "W1")), sum_of(("restate", "W1"))),
            (f"{baton}, W1: p50 / that of DBOS in process", sum_of((baton, "W1")), sum_of(("dbos", "W1"))),
            (f"{baton}, W3: steps/s / {sketch}'s", rate(baton, "W3"), rate(sketch, "W3")),
            (f"{baton}, W3: steps/s / Restate's", rate(baton, "W3"), rate("restate", "W3")),
            (f"{baton}, W4: steps/s / {sketch}'s", rate(baton), rate(sketch)),
            (f"{baton}, W4: steps/s / Restate's", rate(baton), rate("restate")),
            (f"{baton}, W4: steps/s / those of DBOS's best way", rate(baton), dbos),
        ]
    found += [
        ("baton-sdk, W4: steps/s / sketch-batch's", rate("baton-sdk"), rate("sketch-batch")),
        ("traces of 1 % of the runs, W4: steps/s / without", rate("baton-traced-1"), rate("baton-stream")),
        ("traces of every run, W4: steps/s / without", rate("baton-traced-100"), rate("baton-stream")),
    ]
    rows = [[title, f"{above / below:.2f}"] for title, above, below in found if above is not None and below]
    return aligned([["", "of medians"], *rows]) if rows else []


def _is_busy(medians: Medians) -> bool:
    """Whether any work of any repetition had to share the machine; short works are not told apart from noise."""
    spreads = [
        medians.spread(system, work, "other_load_cores") for system in medians.systems() for work in ("W1", "W2", "W4")
    ]
    return any(spread is not None and spread[1] > _BUSY_CORES for spread in spreads)
