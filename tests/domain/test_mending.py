"""Mending in the core: what begins anew, what is kept, and that a run that is folded again is the same run."""

from __future__ import annotations

import pytest

from orchestrator.domain import inputs
from orchestrator.domain.events import Payload, RunReopened, RunUndoing
from orchestrator.domain.plan import decide
from orchestrator.domain.run import Run
from orchestrator.domain.states import RunState, StepState

from .graphs import contents, replay
from .scenario import START_TIME, Player
from .scenario_graph import Script, add_step, add_to_step, duration_us


class Story:
    """A run that is told input by input, and folded again after each."""

    def __init__(self, graph: str) -> None:
        script = Script()
        for line in graph.strip().splitlines():
            words = line.split()
            if line.startswith("  "):
                add_to_step(script, words)
            else:
                add_step(script, words[1:])
        self._player = Player(script)

    @property
    def run(self) -> Run:
        return self._player.run

    def tell(self, *lines: str) -> None:
        """Gives inputs in the form of the scenarios."""
        for line in lines:
            list(self._player.play(line.split()))
            self._fold_again()

    def give(self, given: inputs.Input, at: str = "1m") -> list[object]:
        """Gives one input; returns the events."""
        decision = decide(self.run, given, START_TIME + duration_us(at), self._player.conditions)
        self._player.events.extend(decision.events)
        self._fold_again()
        return list(decision.events)

    def reopen(self, *again: str, undo: str = "", instead: str = "", output: bytes | None = None) -> RunReopened:
        """Reopens the run."""
        index = self.run.indexes
        substitution = None
        if instead:
            payload = None if output is None else Payload("shop.v1.Output", output)
            substitution = inputs.Substitution(index[instead], payload, "eve")
        given = inputs.Reopening(
            tuple(index[step] for step in (*again, *([instead] if instead else []))),
            (index[undo],) if undo else (),
            substitution,
            self.run.revision,
            START_TIME + duration_us("2h"),
            "eve",
            "",
            None,
        )
        events = self.give(given)
        assert isinstance(events[0], RunReopened)
        return events[0]

    def states(self) -> str:
        return " ".join(f"{step.spec.id}={step.state.name}" for step in self.run.steps)

    def _fold_again(self) -> None:
        assert contents(replay(self.run.graph, self._player.events)) == contents(self.run)


def test_what_failed_and_what_was_never_reached_begins_anew() -> None:
    story = Story("step a\nstep b\nstep c after=a,b\nstep d after=a")
    story.tell("0s submit", "1ms admit a", "1ms admit b", "2ms succeed a 1", "3ms fail b 1 INVALID_ARGUMENT")
    assert story.run.state is RunState.FAILED
    assert story.reopen().reset == ("b", "c", "d")
    assert story.states() == "a=SUCCEEDED b=READY c=BLOCKED d=READY"
    assert (story.run.round, story.run.failure, story.run.end_time) == (2, None, None)
    story.tell("2m admit b", "2m admit d", "3m succeed b 2", "3m succeed d 1", "3m admit c", "4m succeed c 1")
    assert story.run.state is RunState.SUCCEEDED


def test_retries_are_counted_anew_and_attempts_on() -> None:
    story = Story("step a attempts=2 retry=UNAVAILABLE")
    for round_number in (1, 2):
        first = 2 * round_number - 1
        minute = 2 * round_number
        story.tell(*(["0s submit"] if round_number == 1 else []))
        for attempt in (first, first + 1):
            story.tell(f"{minute}m admit a", f"{minute}m fail a {attempt} UNAVAILABLE")
        assert story.run.state is RunState.FAILED
        story.reopen()
    assert [record.attempt for record in story.run.steps[0].attempts] == [1, 2, 3, 4]


def test_a_failure_that_a_branch_was_taken_for_is_kept() -> None:
    story = Story("step a on_failure=any:b\nstep b\nstep c after=b")
    story.tell("0s submit", "1ms admit a", "2ms fail a 1 INVALID_ARGUMENT", "3ms admit b", "4ms succeed b 1")
    story.tell("5ms admit c", "6ms fail c 1 INVALID_ARGUMENT")
    assert story.reopen().reset == ("c",)
    assert story.states() == "a=FAILED b=SUCCEEDED c=READY"
    assert story.run.steps[1].chosen


def test_a_handler_that_failed_is_taken_again() -> None:
    story = Story("step a on_failure=any:b\nstep b")
    story.tell("0s submit", "1ms admit a", "2ms fail a 1 INVALID_ARGUMENT", "3ms admit b")
    story.tell("4ms fail b 1 INVALID_ARGUMENT")
    assert story.reopen().reset == ("b",)
    story.tell("2m admit b", "2m succeed b 2")
    assert story.run.state is RunState.SUCCEEDED


def test_items_that_succeeded_are_kept() -> None:
    story = Story("step each map=4 max_parallel=4\nstep last after=each")
    story.tell("0s submit", *(f"1ms admit each/{number}" for number in range(4)))
    story.tell("2ms succeed each/0 1", "2ms succeed each/2 1", "3ms fail each/1 1 INVALID_ARGUMENT")
    assert story.run.state is RunState.FAILED
    assert story.reopen().reset == ("each", "last")
    assert story.states() == ("each=WAITING last=BLOCKED each/0=SUCCEEDED each/1=READY each/2=SUCCEEDED each/3=READY")
    story.tell("2m admit each/1", "2m admit each/3", "3m succeed each/1 2", "3m succeed each/3 2")
    assert story.run.steps[0].state is StepState.SUCCEEDED


def test_items_begin_anew_where_what_they_depend_on_does() -> None:
    story = Story("step a\nstep each map=2 after=a")
    story.tell("0s submit", "1ms admit a", "2ms succeed a 1", "3ms admit each/0", "4ms succeed each/0 1")
    story.tell("4ms admit each/1", "5ms fail each/1 1 INVALID_ARGUMENT")
    assert story.reopen("a").reset == ("a", "each")
    assert story.states() == "a=READY each=BLOCKED"
    story.tell("2m admit a", "2m succeed a 2")
    assert story.states() == "a=SUCCEEDED each=WAITING each/0=READY each/1=READY"
    assert story.run.steps[3].attempt == 1, "its attempts of the round before are counted on"


def test_iterations_before_the_failed_one_are_kept() -> None:
    story = Story("step grow repeat=3")
    story.tell("0s submit", "1ms admit grow/1", "2ms succeed grow/1 1", "3ms admit grow/2")
    story.tell("4ms fail grow/2 1 INVALID_ARGUMENT")
    story.reopen()
    assert story.states() == "grow=WAITING grow/1=SUCCEEDED grow/2=READY"
    story.tell("2m admit grow/2", "2m succeed grow/2 2", "2m admit grow/3", "2m succeed grow/3 1")
    assert story.run.state is RunState.SUCCEEDED


def test_delegated_steps_that_succeeded_answer_again() -> None:
    story = Story("step a")
    story.tell("0s submit", "1ms admit a", "2ms delegate a 1 good", "2ms delegate a 1 bad", "3ms admit a/good")
    story.tell("4ms succeed a/good 1", "5ms fail a 1 INVALID_ARGUMENT")
    assert story.run.state is RunState.FAILED
    story.reopen()
    assert story.states() == "a=READY a/good=SUCCEEDED"
    story.tell("2m admit a", "2m delegate a 2 good")
    assert story.states() == "a=RUNNING a/good=SUCCEEDED", "the recorded key is not added again"
    story.tell("2m delegate a 2 bad", "2m succeed a 2")
    assert story.run.state is RunState.SUCCEEDED


def test_a_step_that_was_handed_over_begins_anew_without_its_parent() -> None:
    story = Story("step a\nstep b after=a")
    story.tell("0s submit", "1ms admit a", "2ms delegate a 1 later detached", "3ms succeed a 1", "4ms admit a/later")
    story.tell("5ms fail a/later 1 INVALID_ARGUMENT")
    assert story.run.state is RunState.FAILED
    assert story.reopen().reset == ("b", "a/later")
    assert story.states() == "a=SUCCEEDED b=BLOCKED a/later=READY"
    story.tell("2m admit a/later", "2m succeed a/later 2", "2m admit b", "2m succeed b 1")
    assert story.run.state is RunState.SUCCEEDED


UNDONE = "step a\n  undo take_back attempts=1\nstep b after=a"


def undone(*ends: str) -> Story:
    story = Story(UNDONE)
    story.tell("0s submit", "1ms admit a", "2ms succeed a 1", "3ms admit b", "4ms fail b 1 INVALID_ARGUMENT")
    assert story.run.state is RunState.UNDOING
    story.tell("5ms admit a/undo", *ends)
    return story


@pytest.mark.parametrize("end", ["6ms succeed a/undo 1", "6ms fail a/undo 1 INVALID_ARGUMENT"])
def test_a_success_whose_undo_call_was_made_is_not_kept(end: str) -> None:
    story = undone(end)
    assert story.run.state is RunState.FAILED
    assert story.reopen().reset == ("a", "b")
    assert story.states() == "a=READY b=BLOCKED"
    story.tell("2m admit a", "2m succeed a 2", "2m admit b", "2m fail b 2 INVALID_ARGUMENT")
    assert story.states() == "a=SUCCEEDED b=FAILED a/undo=READY", "and is taken back again"
    story.tell("3m admit a/undo", "3m succeed a/undo 2")
    assert story.run.state is RunState.FAILED


def test_an_undo_call_is_made_again_alone() -> None:
    story = undone("6ms fail a/undo 1 INVALID_ARGUMENT")
    failure = story.run.failure
    events = story.reopen(undo="a")
    assert events.reset == ()
    assert story.states() == "a=SUCCEEDED b=FAILED a/undo=READY"
    assert story.run.state is RunState.UNDOING
    story.tell("2m admit a/undo", "2m succeed a/undo 2")
    assert (story.run.state, story.run.failure, story.run.round) == (RunState.FAILED, failure, 2)
    assert story.reopen().reset == ("a", "b"), "what was taken back is done again"


def test_an_output_is_given_in_the_place_of_a_step() -> None:
    story = Story("step a\n  undo take_back\nstep b after=a")
    story.tell("0s submit", "1ms admit a", "2ms fail a 1 INVALID_ARGUMENT")
    story.reopen(instead="a", output=b"by hand")
    assert story.states() == "a=SUCCEEDED b=READY"
    assert (story.run.steps[0].output, story.run.steps[0].substituted_by) == (
        Payload("shop.v1.Output", b"by hand"),
        "eve",
    )
    story.tell("2m admit b", "2m fail b 1 INVALID_ARGUMENT")
    assert story.run.state is RunState.FAILED, "no undo call is made for what no call has done"


def test_a_step_under_way_is_ended_in_its_place() -> None:
    story = Story("step a\nstep b after=a")
    story.tell("0s submit", "1ms admit a")
    decision = decide(story.run, inputs.Substitution(0, None, "eve"), START_TIME + 2_000, story._player.conditions)
    assert decision.cancelled == [(0, 1)]
    assert story.states() == "a=SKIPPED b=READY"


def test_only_ready_steps_wait_while_a_run_is_paused() -> None:
    story = Story("step a\nstep b after=a")
    story.tell("0s submit", "1ms admit a")
    assert story.give(inputs.PauseRequest("eve", "night"), "2ms")
    assert not story.give(inputs.PauseRequest("eve", "night"), "3ms"), "once is enough"
    story.tell("4ms succeed a 1")
    assert (story.run.paused, story.states()) == (True, "a=SUCCEEDED b=READY")
    decision = decide(story.run, inputs.ResumeRequest("eve"), START_TIME + 5_000, story._player.conditions)
    assert decision.queued == [1]


def test_a_run_that_succeeded_or_goes_on_is_not_reopened() -> None:
    story = Story("step a")
    story.tell("0s submit", "1ms admit a")
    reopening = inputs.Reopening((), (), None, "r1", START_TIME + duration_us("2h"), "eve", "", None)
    assert not story.give(reopening)
    story.tell("2m succeed a 1")
    assert not story.give(reopening)
    assert story.run.state is RunState.SUCCEEDED


def test_undo_calls_that_were_made_are_not_made_twice() -> None:
    story = Story("step a\n  undo back_a attempts=1\nstep b after=a\n  undo back_b attempts=1\nstep c after=b")
    story.tell("0s submit", "1ms admit a", "1ms succeed a 1", "1ms admit b", "1ms succeed b 1", "1ms admit c")
    story.tell("2ms fail c 1 INVALID_ARGUMENT", "3ms admit b/undo", "3ms fail b/undo 1 INVALID_ARGUMENT")
    story.tell("4ms admit a/undo", "4ms succeed a/undo 1")
    story.reopen(undo="b")
    undoing = next(event for event in reversed(story._player.events) if isinstance(event, RunUndoing))
    assert [story.run.steps[index].spec.id for index in undoing.steps] == ["b"]
