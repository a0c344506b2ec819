"""Reads the lines of a scenario that give inputs. scenarios/README.md tells how."""

from __future__ import annotations

from orchestrator.domain import inputs
from orchestrator.domain.events import Payload
from orchestrator.domain.failures import Code, Failure, Origin
from orchestrator.domain.run import Run
from orchestrator.domain.waits import ApprovalAwaited

from .graphs import EVALUATION_FAILED
from .scenario_graph import Settings, duration_us, settings_of, take_delivery, take_duration, take_target


def input_of(run: Run, verb: str, words: list[str], now: int) -> inputs.Input:
    """Reads an input."""
    given = _of_run(verb, words, now) or _of_mending(run, verb, words, now)
    if given is not None:
        return given
    step, plain, settings = run.indexes[words[0]], words[1:], settings_of(words[1:])
    given = _of_call(run, verb, step, plain, settings) or _of_wait(run, verb, step, plain, settings)
    assert given is not None, f"unknown input {verb!r}"
    return given


def _of_run(verb: str, words: list[str], now: int) -> inputs.Input | None:
    match verb:
        case "submit":
            settings = settings_of(words)
            expire_time, depth = now + duration_us(settings.get("expire", "1h")), int(settings.get("depth", "0"))
            return inputs.Submission("order", "r1", expire_time, "ann", "grpc", "", (), {}, "", "q1", None, depth=depth)
        case "resume":
            return inputs.Resumption("handed_over" in words)
        case "run_timeout":
            return inputs.RunTimeoutPassed()
        case "cancel":
            return inputs.CancelRequest(" ".join(words), "ann")
        case "abandon":
            return inputs.Abandonment(Failure(Code.INTERNAL, "INTERNAL", "no", Origin.ORCHESTRATOR))
        case "signal":
            request_id = words[2] if len(words) > 2 else ""
            return inputs.Signal(words[0], "ann", request_id, Payload("shop.v1.Signal", words[1].encode()))
    return None


def _of_mending(run: Run, verb: str, words: list[str], now: int) -> inputs.Input | None:
    match verb:
        case "pause":
            return inputs.PauseRequest("ann", "look")
        case "unpause":
            return inputs.ResumeRequest("ann")
        case "substitute":
            return inputs.Substitution(run.indexes[words[0]], Payload("shop.v1.Output", words[1].encode()), "bob")
        case "skip":
            return inputs.Substitution(run.indexes[words[0]], None, "bob")
        case "retry" | "retry_with":
            index = run.indexes[words[0]]
            given = Payload("shop.v1.Output", words[1].encode()) if verb == "retry_with" else None
            substitution = inputs.Substitution(index, given, "bob") if given is not None else None
            return inputs.StepRetry(index, substitution, "bob", "")
        case "reopen" | "undo_again":
            places = tuple(run.indexes[word] for word in words)
            again, undo = (places, ()) if verb == "reopen" else ((), places)
            expire_time = now + duration_us("1h")
            return inputs.Reopening(again, undo, None, run.revision, expire_time, "bob", "", None)
    return None


def _of_call(run: Run, verb: str, step: int, words: list[str], settings: Settings) -> inputs.Input | None:
    match verb:
        case "admit":
            handed_over = "handed_over" in words
            worker = next((word for word in words if word != "handed_over"), "w")
            return inputs.StepAdmitted(step, worker, f"{worker}:1", handed_over=handed_over)
        case "succeed":
            text = words[1] if len(words) > 1 else run.steps[step].spec.id
            return inputs.CallSucceeded(step, int(words[0]), Payload("shop.v1.Output", text.encode()))
        case "fail":
            plain = [word for word in words if "=" not in word]
            unknown = "outcome_unknown" in plain
            reason = plain[2] if len(plain) > 2 else plain[1]
            origin = Origin.TRANSPORT if unknown else Origin.WORKER
            failure = Failure(Code[plain[1]], reason, "no", origin, outcome_unknown=unknown)
            delay_us = take_duration(settings, "delay")
            return inputs.CallFailed(step, int(plain[0]), failure, delay_us, float(settings.get("draw", "0")))
        case "lose":
            return inputs.CallLost(step, int(words[0]))
        case "circuit_open":
            return inputs.CircuitOpen(step)
        case "unbuildable":
            return inputs.RequestUnbuildable(step, EVALUATION_FAILED)
        case "timeout":
            return inputs.TimeoutPassed(step)
        case "heartbeat_missed":
            return inputs.HeartbeatMissed(step, int(words[0]))
        case "checkpoint":
            return inputs.Checkpoint(step, int(words[0]), Payload("shop.v1.Checkpoint", words[1].encode()))
    return None


def _of_wait(run: Run, verb: str, step: int, words: list[str], settings: Settings) -> inputs.Input | None:
    match verb:
        case "delegate":
            return _delegation(step, int(words[0]), words[1], settings_of(words[2:]))
        case "suspend":
            return inputs.CallSuspended(step, int(words[0]), tuple(words[1:]))
        case "approve" | "deny":
            wait = run.steps[step].wait
            shown = settings.get("hash") or (wait.request_hash if isinstance(wait, ApprovalAwaited) else "none")
            reason = " ".join(word for word in words if "=" not in word)
            return inputs.Decided(step, shown, verb == "approve", "bob", reason)
        case "child_succeed":
            run_id = settings.get("run", f"child-{step}")
            return inputs.ChildRunEnded(step, run_id, None, Payload("shop.v1.Output", b"child"))
        case "child_fail":
            failure = Failure(Code[words[0]], "DECLINED", "no", Origin.WORKER, step="inner")
            return inputs.ChildRunEnded(step, settings.get("run", f"child-{step}"), failure, None)
    return None


def _delegation(parent: int, attempt: int, key: str, settings: Settings) -> inputs.Delegation:
    detached = settings.pop("detached", None) is not None
    delivery, timeout_us = take_delivery(settings), take_duration(settings, "step_timeout")
    target = take_target(key, settings)
    assert not settings, f"unknown settings: {settings}"
    request = Payload("shop.v1.Request", f"request of {key}".encode())
    return inputs.Delegation(parent, attempt, key, target, "digest", detached, delivery, timeout_us, request)
