"""The graph of a workflow: edges from what steps read, cycles, outputs that may be missing, steps that can never run.

Everything here is linear in the size of the workflow, but for what follows chains of conditions, which is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from baton.v1 import workflow_pb2

from orchestrator.contracts.reads import (
    ANY_STATE,
    NO_FACTS,
    Facts,
    Read,
    Site,
    both,
    either,
)
from orchestrator.contracts.scope import EndState
from orchestrator.contracts.violations import Report, closest

_FOLLOWED_FOR_REACHABILITY = 100
_FOLLOWED_FOR_A_READ = 1_000
_FOLLOWED_IN_ALL = 500_000


@dataclass(slots=True)
class Wiring:
    """How the steps of a workflow hang together.

    `after`, `handlers` and `handles` hold indexes; `sites` are the bindings and conditions of each step (None: of the
    run's output); `when` what is known of other steps where a step's condition is true.
    """

    ids: list[str]
    after: list[dict[int, str]]
    handles: list[dict[int, str]]
    possible: list[int]
    sites: dict[int | None, list[Site]] = field(default_factory=dict)
    when_sites: dict[int, Site] = field(default_factory=dict)
    when: dict[int, Facts] = field(default_factory=dict)

    def reads_from(self, index: int) -> dict[int, str]:
        """Returns the steps that step `index` reads or handles, each with the path of the first place."""
        found: dict[int, str] = {}
        for site in (*self.sites.get(index, ()), *self._when_site(index)):
            for read in site.reads:
                if read.step != index:
                    found.setdefault(read.step, site.path)
        for step, path in self.handles[index].items():
            found.setdefault(step, path)
        return found

    def _when_site(self, index: int) -> Iterable[Site]:
        site = self.when_sites.get(index)
        return () if site is None else (site,)

    def direct_facts(self, index: int) -> Facts:
        """Returns what is known of other steps where step `index` runs, from its own condition and branches."""
        handled: Facts = None
        for step in self.handles[index]:
            handled = either(handled, {step: int(EndState.FAILED)})
        return both(self.when.get(index, NO_FACTS), handled if self.handles[index] else NO_FACTS)


def wire(workflow: workflow_pb2.Workflow, steps: dict[str, int], report: Report) -> Wiring:
    """Resolves `after` and `on_failure`, reporting duplicate and unknown ids and steps that name themselves."""
    ids = [step.id for step in workflow.steps]
    after: list[dict[int, str]] = [{} for _ in ids]
    handles: list[dict[int, str]] = [{} for _ in ids]
    for index, step in enumerate(workflow.steps):
        if steps[step.id] != index:
            report.add(
                f"steps[{index}].id",
                "DUPLICATE_STEP",
                f"steps[{steps[step.id]}] has the id `{step.id}` as well",
            )
        for number, name in enumerate(step.after):
            path = f"steps[{index}].after[{number}]"
            found = _named(name, index, steps, ids, path, report)
            if found is not None:
                after[index].setdefault(found, path)
        for number, branch in enumerate(step.on_failure):
            if _is_taken_before(branch, step.on_failure[:number]):
                report.add(
                    f"steps[{index}].on_failure[{number}]",
                    "UNREACHABLE_STEP",
                    "the branch is never taken: the ones before it match every failure that it matches; "
                    "put it before them, or leave it out",
                )
            if branch.step:
                path = f"steps[{index}].on_failure[{number}].step"
                found = _named(branch.step, index, steps, ids, path, report)
                if found is not None:
                    handles[found].setdefault(index, path)
    possible = [
        EndState.SUCCEEDED
        | (EndState.SKIPPED if step.when or handles[index] else 0)
        | (EndState.FAILED if step.on_failure else 0)
        for index, step in enumerate(workflow.steps)
    ]
    return Wiring(ids, after, handles, [int(mask) for mask in possible])


def _is_taken_before(branch: workflow_pb2.FailureBranch, earlier: Sequence[workflow_pb2.FailureBranch]) -> bool:
    if any(not one.codes and not one.reasons for one in earlier):
        return True
    codes = {code for one in earlier for code in one.codes}
    reasons = {reason for one in earlier for reason in one.reasons}
    return (
        bool(branch.codes or branch.reasons) and codes.issuperset(branch.codes) and reasons.issuperset(branch.reasons)
    )


def _named(
    name: str,
    index: int,
    steps: dict[str, int],
    ids: list[str],
    path: str,
    report: Report,
) -> int | None:
    found = steps.get(name)
    if found is None:
        report.add(path, "UNKNOWN_STEP", f"there is no step `{name}`{closest(name, steps)}")
    elif found == index:
        report.add(path, "CYCLE", f"the step names itself: {name} -> {name}")
        return None
    return found


def find_cycles(edges: list[dict[int, str]], ids: list[str], report: Report) -> bool:
    """Reports each cycle once, at the place where its first step depends on the next; tells whether there is one."""
    waiting = [len(found) for found in edges]
    successors: list[list[int]] = [[] for _ in edges]
    for index, found in enumerate(edges):
        for step in found:
            successors[step].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    done = [False] * len(edges)
    while ready:
        index = ready.pop()
        done[index] = True
        for successor in successors[index]:
            waiting[successor] -= 1
            if not waiting[successor]:
                ready.append(successor)
    cyclic = not all(done)
    for start in range(len(edges)):
        if not done[start]:
            _report_cycle(start, edges, done, ids, report)
    return cyclic


def _report_cycle(
    start: int,
    edges: list[dict[int, str]],
    done: list[bool],
    ids: list[str],
    report: Report,
) -> None:
    """Follows unfinished dependencies from `start` until a step comes again, and marks the way as done."""
    order: dict[int, int] = {}
    way: list[int] = []
    current = start
    while current not in order:
        order[current] = len(way)
        way.append(current)
        following = next((step for step in edges[current] if not done[step]), None)
        if following is None:
            break
        current = following
    else:
        cycle = way[order[current] :]
        first = cycle.index(min(cycle))
        cycle = cycle[first:] + cycle[:first]
        names = " -> ".join(ids[step] for step in (*cycle[:20], *([cycle[0]] if len(cycle) <= 20 else [])))
        path = edges[cycle[0]][cycle[1 % len(cycle)]]
        report.add(
            path,
            "CYCLE",
            f"the steps wait for each other: {names}{' -> …' if len(cycle) > 20 else ''}",
        )
    for step in way:
        done[step] = True


@dataclass(slots=True)
class Knowledge:
    """Follows what conditions imply through the conditions of the steps that they require."""

    wiring: Wiring
    left: int = _FOLLOWED_IN_ALL

    def follow(self, facts: Facts, limit: int, target: int | None = None) -> Facts:
        """Returns the facts with what they imply, after at most `limit` steps; None where they contradict each other.

        Stops as soon as it is known that `target` has succeeded.
        """
        known: dict[int, int] = {}
        pending: list[Facts] = [facts]
        followed = 0
        while pending and followed <= limit and self.left > 0:
            followed += 1
            self.left -= 1
            more = pending.pop()
            if more is None:
                return None
            for step, mask in more.items():
                before = known.get(step, ANY_STATE)
                now = before & mask & self.wiring.possible[step]
                if not now:
                    return None
                known[step] = now
                if step == target and now == EndState.SUCCEEDED:
                    return known
                # A step that was not skipped has run, so its own condition was true.
                newly_run = before & EndState.SKIPPED and not now & EndState.SKIPPED
                if newly_run and self.wiring.possible[step] & EndState.SKIPPED:
                    pending.append(self.wiring.direct_facts(step))
        return known

    def surely_succeeded(self, read: Read, facts: Facts) -> bool:
        """Tells whether the step read has surely succeeded where the read stands."""
        if self.wiring.possible[read.step] == EndState.SUCCEEDED:
            return True
        known = self.follow(both(read.facts, facts), _FOLLOWED_FOR_A_READ, read.step)
        return known is None or known.get(read.step, ANY_STATE) == EndState.SUCCEEDED


def check_missing_outputs(wiring: Wiring, report: Report) -> None:
    """Reports each read of an output that may be missing where nothing guards it."""
    knowledge = Knowledge(wiring)
    for index, sites in wiring.sites.items():
        running = NO_FACTS if index is None else wiring.direct_facts(index)
        for site in sites:
            if not site.has_default:
                _check_site(site, running, knowledge, index is None, report)
    for index, site in wiring.when_sites.items():
        handled: Facts = NO_FACTS
        if wiring.handles[index]:
            handled = {step: int(EndState.FAILED) for step in wiring.handles[index]}
            handled = handled if len(handled) == 1 else NO_FACTS
        _check_site(site, handled, knowledge, True, report)


def _check_site(site: Site, facts: Facts, knowledge: Knowledge, without_when: bool, report: Report) -> None:
    reported: set[int] = set()
    for read in site.reads:
        if read.kind != "output" or read.step in reported:
            continue
        if facts is not None and not knowledge.surely_succeeded(read, facts):
            reported.add(read.step)
            report.add(
                site.path,
                "OUTPUT_MAY_BE_MISSING",
                _cure(site, read, knowledge.wiring, without_when),
            )


def _cure(site: Site, read: Read, wiring: Wiring, without_when: bool) -> str:
    name = wiring.ids[read.step]
    mask = wiring.possible[read.step]
    causes = []
    if mask & EndState.SKIPPED:
        causes.append("runs only when a failure branch is taken" if wiring.handles[read.step] else "may be skipped")
    if mask & EndState.FAILED:
        causes.append("may fail without ending the run")
    cures = [f"test `steps.{name}.succeeded` in an expression"]
    if not site.path.endswith((".when", ".expect", ".until")):
        cures.insert(0, "give a default_value")
    if not without_when:
        cures.append(f"run this step only `when: steps.{name}.succeeded`")
    return f"{read.text} may be missing, since `{name}` {' and '.join(causes)}: {', or '.join(cures)}"


def check_reachability(wiring: Wiring, report: Report) -> None:
    """Reports each step whose condition can never be true."""
    knowledge = Knowledge(wiring)
    for index in range(len(wiring.ids)):
        if index not in wiring.when:
            continue
        when = wiring.when[index]
        path = f"steps[{index}].when"
        if when is None:
            report.add(path, "UNREACHABLE_STEP", "the condition is never true")
            continue
        impossible = next(
            (step for step, mask in when.items() if not mask & wiring.possible[step]),
            None,
        )
        if impossible is not None:
            report.add(path, "UNREACHABLE_STEP", _never(wiring, impossible, when[impossible]))
        elif knowledge.follow(wiring.direct_facts(index), _FOLLOWED_FOR_REACHABILITY) is None:
            handled = [wiring.ids[step] for step in wiring.handles[index]]
            cause = f"; it runs only after a failure of {' or '.join(handled)}" if handled else ""
            report.add(
                path,
                "UNREACHABLE_STEP",
                f"the condition requires ends of steps that exclude each other{cause}",
            )


def _never(wiring: Wiring, step: int, mask: int) -> str:
    name = wiring.ids[step]
    if mask & EndState.FAILED:
        return (
            f"the condition requires a failure of `{name}`, but that ends the run; add on_failure to `{name}` "
            "to let the run go on"
        )
    return f"the condition requires that `{name}` is skipped, but nothing skips it"
