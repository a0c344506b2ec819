-- What must hold of a campaign's evidence. Each query finds faults: of a sound campaign it has no rows.
-- A query begins with `-- name: CATEGORY/what_is_wrong` and a sentence. Kinds of events are numbered as in
-- baton.v1.RunEvent: 11 attempt_started, 12 delivery_started, 15 to 18 the ends of steps, 19 to 21 those of runs,
-- 22 step_waiting.

-- name: lost/acknowledged_and_absent
-- A submission that was acknowledged has a run.
SELECT a.request, a.run FROM chaos.acknowledged AS a WHERE NOT EXISTS (SELECT FROM chaos.run AS r WHERE r.run = a.run)

-- name: lost/unfinished
-- Every run has ended, once faults are over.
SELECT run, request FROM chaos.run WHERE NOT ended OR owned

-- name: duplicated/several_runs_of_a_request
-- One request id makes one run.
SELECT request, count(*) FROM chaos.run WHERE request <> '' GROUP BY request HAVING count(*) > 1

-- name: duplicated/several_answers_to_a_request
-- One request id is acknowledged with one run, and for one body.
SELECT request FROM chaos.acknowledged GROUP BY request HAVING count(DISTINCT run) > 1 OR count(DISTINCT body) > 1

-- name: duplicated/run_of_another_request
-- The run that a submission was answered with is its own.
SELECT a.request, r.request AS stored, r.run
FROM chaos.acknowledged AS a JOIN chaos.run AS r USING (run) WHERE r.request <> a.request

-- name: double_transitions/not_dense
-- Sequences are dense from 1, and the row of the run knows the next.
SELECT e.run, min(e.sequence), max(e.sequence), count(*), max(r.next_sequence)
FROM chaos.event AS e LEFT JOIN chaos.run AS r USING (run)
GROUP BY e.run
HAVING min(e.sequence) <> 1 OR max(e.sequence) <> count(*) OR max(r.next_sequence) IS DISTINCT FROM max(e.sequence) + 1

-- name: double_transitions/step_ended_twice
-- A step ends once.
SELECT run, step, count(*) FROM chaos.event WHERE kind BETWEEN 15 AND 18 GROUP BY run, step HAVING count(*) > 1

-- name: double_transitions/step_goes_on_after_its_end
-- Nothing follows the end of a step.
SELECT o.run, o.step, o.sequence
FROM chaos.event AS e JOIN chaos.event AS o ON o.run = e.run AND o.step = e.step AND o.sequence > e.sequence
WHERE e.kind BETWEEN 15 AND 18

-- name: double_transitions/attempt_started_twice
-- An attempt starts once, and each of its deliveries too.
SELECT run, step, attempt, kind, delivery FROM chaos.event WHERE kind IN (11, 12)
GROUP BY run, step, attempt, kind, delivery HAVING count(*) > 1

-- name: double_transitions/run_goes_on_after_its_end
-- Nothing follows the end of a run.
SELECT o.run, o.sequence, o.kind
FROM chaos.event AS e JOIN chaos.event AS o ON o.run = e.run AND o.sequence > e.sequence WHERE e.kind BETWEEN 19 AND 21

-- name: double_transitions/before_what_it_waits_for
-- A step starts after what it depends on has succeeded.
SELECT e.run, d.earlier, d.later
FROM chaos.event AS e JOIN chaos.edge AS d ON d.later = e.step
WHERE e.kind IN (11, 22) AND e.attempt <= 1 AND NOT EXISTS (
    SELECT FROM chaos.event AS b
    WHERE b.run = e.run AND b.step = d.earlier AND b.kind = 15 AND b.sequence < e.sequence
)

-- name: stale_writes_accepted/epoch_goes_back
-- An owner of before writes nothing after the one who took over.
SELECT run, sequence, epoch, before
FROM (SELECT *, max(epoch) OVER (PARTITION BY run ORDER BY sequence) AS before FROM chaos.event) AS e
WHERE epoch < before

-- name: stale_writes_accepted/epoch_of_nobody
-- Nothing is written under an epoch that the run has not come to.
SELECT e.run, e.sequence FROM chaos.event AS e JOIN chaos.run AS r USING (run) WHERE e.epoch > r.epoch

-- name: stale_writes_accepted/epoch_claimed_twice
-- An epoch of a run has one owner.
SELECT run, epoch FROM chaos.claim GROUP BY run, epoch HAVING count(*) > 1

-- name: stale_writes_accepted/claimed_from_the_living
-- A run is taken over from a replica that was marked as gone, or from nobody.
SELECT run, epoch, previous_owner FROM chaos.claim WHERE previous_owner IS NOT NULL AND NOT previous_marked

-- name: watch_gaps/gap_or_repeat
-- A watcher sees each event once and in order, after its snapshot and over every reconnection.
SELECT watcher, run, sequence, before
FROM (SELECT *, lag(sequence) OVER (PARTITION BY watcher, run ORDER BY line) AS before FROM chaos.seen) AS s
WHERE what = 'event' AND sequence IS DISTINCT FROM before + 1

-- name: watch_gaps/never_journaled
-- What a watcher sees stands in the journal.
SELECT s.watcher, s.run, s.sequence FROM chaos.seen AS s
WHERE s.what = 'event' AND NOT EXISTS (SELECT FROM chaos.event AS e WHERE e.run = s.run AND e.sequence = s.sequence)

-- name: watch_gaps/not_to_the_end
-- A watch that was not given up goes on to the end of the run.
SELECT s.watcher, s.run, max(s.sequence), max(r.next_sequence)
FROM chaos.seen AS s JOIN chaos.run AS r USING (run)
WHERE r.ended GROUP BY s.watcher, s.run HAVING max(s.sequence) IS DISTINCT FROM max(r.next_sequence) - 1

-- name: calls/never_journaled
-- A worker is called for what is durable.
SELECT c.run, c.step, c.attempt, c.delivery FROM chaos.call AS c
WHERE c.what = 'arrived' AND NOT EXISTS (
    SELECT FROM chaos.event AS e
    WHERE e.run = c.run AND e.step = c.step AND e.attempt = c.attempt AND e.delivery = c.delivery AND e.kind IN (11, 12)
)

-- name: calls/before_its_entry
-- A worker is called after that became durable; its clock and the estimate of the database's differ a little.
SELECT c.run, c.step, c.attempt, e.time - c.time AS early_us
FROM chaos.call AS c JOIN chaos.event AS e
    ON e.run = c.run AND e.step = c.step AND e.attempt = c.attempt AND e.delivery = c.delivery AND e.kind IN (11, 12)
WHERE c.what = 'arrived' AND c.time < e.time - 100000

-- name: calls/sent_twice
-- A delivery is sent once.
SELECT run, step, attempt, delivery FROM chaos.call WHERE what = 'arrived'
GROUP BY run, step, attempt, delivery HAVING count(*) > 1

-- name: calls/several_keys
-- All calls of a step have one idempotency key, and no other step has it.
SELECT min(run) AS run, min(step) AS step FROM chaos.call GROUP BY run, step HAVING count(DISTINCT key) > 1
UNION ALL
SELECT min(run), min(step) FROM chaos.call GROUP BY key HAVING count(DISTINCT (run, step)) > 1

-- name: calls/success_without_an_answer
-- What a step succeeded with is what its worker answered in that attempt.
SELECT e.run, e.step, e.attempt, e.value FROM chaos.event AS e
WHERE e.kind = 15 AND e.step NOT IN ('nap', 'alarm') AND NOT EXISTS (
    SELECT FROM chaos.call AS c
    WHERE c.what = 'answered' AND c.run = e.run AND c.step = e.step AND c.attempt = e.attempt
        AND c.value IS NOT DISTINCT FROM e.value
)

-- name: calls/unbounded
-- An attempt is sent three times at most, and poison is tried three times.
SELECT e.run, e.step FROM chaos.event AS e
LEFT JOIN chaos.acknowledged AS a ON a.run = e.run LEFT JOIN chaos.conduct AS c ON c.name = a.conduct
WHERE e.kind IN (11, 12) AND (e.delivery > 3 OR (e.attempt > 3 AND c.poison AND e.step = 'b'))

-- name: ends/another_than_due
-- A run ends as its workers behave, CANCELLED only where that was asked for, and with the right output. One whose call
-- was under way at three deaths of its owners is given up, as is promised.
SELECT DISTINCT a.run, a.conduct, e.kind, e.value, e.reason
FROM chaos.acknowledged AS a
JOIN chaos.event AS e ON e.run = a.run AND e.kind BETWEEN 19 AND 21
JOIN chaos.conduct AS c ON c.name = a.conduct
WHERE NOT (
    CASE e.kind
        WHEN 19 THEN c.ends = 'run_succeeded' AND e.value IS NOT DISTINCT FROM a.due
        WHEN 20 THEN c.ends = 'run_failed' OR (
            e.reason = 'DELIVERY_LIMIT'
            AND EXISTS (SELECT FROM chaos.event AS d WHERE d.run = a.run AND d.kind = 12 AND d.delivery = 3)
        )
        ELSE EXISTS (SELECT FROM chaos.cancelling AS g WHERE g.run = a.run)
    END
)

-- name: ends/early_timer
-- A sleeping step wakes when its time has come, not before.
SELECT e.run, e.step, w.until - e.time AS early_us
FROM chaos.event AS e JOIN chaos.event AS w ON w.run = e.run AND w.step = e.step AND w.kind = 22
WHERE e.kind = 15 AND e.time < w.until

-- name: refusals/of_what_is_right
-- A right submission is refused for no reason that stays.
SELECT request, code, reason FROM chaos.refused WHERE NOT other_body

-- name: refusals/of_another_kind
-- The same request id with another body is refused as such.
SELECT request, code, reason FROM chaos.refused WHERE other_body AND reason <> 'REQUEST_ID_REUSED'

-- name: refusals/watch_refused
-- No watch is refused for a reason that stays.
SELECT watcher, run FROM chaos.seen WHERE what = 'failed'
