-- name: get_schedule
-- Reads one schedule.
SELECT
    namespace, schedule, definition, input, principal, create_time, update_time, version, next_time, waiting_time, due_time,
    pause_time, pause_note, pause_principal, fired_count, skipped_count, missed_count, refused_count,
    refusal_time, refusal_reason, refusal_message
FROM schedules
WHERE namespace = $1 AND schedule = $2

-- name: list_schedules
-- Lists schedules by name, without their inputs.
SELECT
    namespace, schedule, definition, ''::bytea AS input, principal, create_time, update_time, version, next_time, waiting_time, due_time,
    pause_time, pause_note, pause_principal, fired_count, skipped_count, missed_count, refused_count,
    refusal_time, refusal_reason, refusal_message
FROM schedules
WHERE namespace = $1 AND schedule > $2
ORDER BY schedule
LIMIT $3

-- name: count_schedules
-- Counts the schedules of a namespace, up to a limit.
SELECT count(*) FROM (SELECT FROM schedules WHERE namespace = $1 LIMIT $2) AS found

-- name: insert_schedule
-- Stores a new schedule; no row where the name has one.
INSERT INTO schedules (
    namespace, schedule, definition, input, principal, create_time, update_time, version, next_time, waiting_time, due_time,
    fired_count, skipped_count, missed_count, refused_count
)
VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8, NULL, $9, 0, 0, 0, 0)
ON CONFLICT (namespace, schedule) DO NOTHING
RETURNING version

-- name: update_schedule
-- Changes a schedule that nobody has changed meanwhile, and gives up the claim on it of the replica $22, which ends at
-- $23, where that is given; no row where another was first, or that claim does not stand any more.
UPDATE schedules
SET definition = $5, input = $6, principal = $7, update_time = $8, version = version + 1,
    next_time = $9, waiting_time = $10, due_time = $11, pause_time = $12, pause_note = $13, pause_principal = $14,
    fired_count = $15, skipped_count = $16, missed_count = $17, refused_count = $18,
    refusal_time = $19, refusal_reason = $20, refusal_message = $21,
    claim_replica = CASE WHEN $22::uuid IS NULL THEN claim_replica END,
    claim_expire_time = CASE WHEN $22::uuid IS NULL THEN claim_expire_time END
WHERE namespace = $1 AND schedule = $2 AND create_time = $3 AND version = $4
    AND (
        $22::uuid IS NULL
        OR (claim_replica = $22 AND (extract(epoch FROM claim_expire_time) * 1000000)::bigint = $23::bigint)
    )
RETURNING version

-- name: delete_schedule
-- Deletes a schedule, and with it the list of its runs.
DELETE FROM schedules
WHERE namespace = $1 AND schedule = $2
RETURNING
    namespace, schedule, definition, input, principal, create_time, update_time, version, next_time, waiting_time, due_time,
    pause_time, pause_note, pause_principal, fired_count, skipped_count, missed_count, refused_count,
    refusal_time, refusal_reason, refusal_message

-- name: claim_due
-- Claims schedules that are due and that no living replica deals with, the longest due first, but of some namespaces;
-- those that this replica claimed before are given again. `doubtful`: a claim on it was not given up. A replica whose
-- lease is over and that is not marked as dead may have a submission under way, which commits after all.
WITH due AS MATERIALIZED (
    SELECT s.namespace, s.schedule, s.claim_replica IS NOT NULL AS doubtful
    FROM schedules AS s
    WHERE s.due_time <= $2 AND s.namespace <> ALL ($5::text[])
        AND (
            s.claim_replica IS NULL
            OR s.claim_replica = $1
            OR s.claim_expire_time <= clock_timestamp()
            OR NOT EXISTS (
                SELECT FROM replicas AS r
                WHERE r.replica_id = s.claim_replica AND r.end_time IS NULL
            )
        )
    ORDER BY s.due_time
    LIMIT $3
    FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE schedules AS s
SET claim_replica = $1, claim_expire_time = clock_timestamp() + make_interval(secs => $4::float8)
FROM due AS d
WHERE s.namespace = ANY (ARRAY[d.namespace]) AND s.schedule = d.schedule  -- by key: see write_batch
RETURNING
    s.namespace, s.schedule, s.definition, s.input, s.principal, s.create_time, s.update_time, s.version, s.next_time,
    s.waiting_time, s.due_time, s.pause_time, s.pause_note, s.pause_principal, s.fired_count, s.skipped_count,
    s.missed_count, s.refused_count, s.refusal_time, s.refusal_reason, s.refusal_message, d.doubtful,
    (extract(epoch FROM s.claim_expire_time) * 1000000)::bigint AS claim_expire_time

-- name: next_due_time
-- Tells when the next schedule is due.
SELECT min(due_time) AS due_time FROM schedules WHERE due_time > $1

-- name: add_run
-- Notes a run of a schedule, unless that is gone.
INSERT INTO schedule_runs (namespace, schedule, run_id, fire_time, triggered)
SELECT namespace, schedule, $3, $4, $5
FROM schedules
WHERE namespace = $1 AND schedule = $2
FOR KEY SHARE
ON CONFLICT (namespace, schedule, run_id) DO NOTHING

-- name: forget_runs
-- Forgets runs of a schedule that have ended, but the newest ($3), and wishes to cancel runs that have ended.
WITH ended AS MATERIALIZED (
    SELECT s.run_id, row_number() OVER (ORDER BY s.run_id DESC) > $3 AS old
    FROM schedule_runs AS s
    WHERE s.namespace = $1 AND s.schedule = $2
        AND NOT EXISTS (
            SELECT FROM runs AS r WHERE r.namespace = $1 AND r.run_id = s.run_id AND r.end_time IS NULL
        )
),
settled AS (
    UPDATE schedule_runs AS s
    SET cancel_round = NULL
    FROM ended AS e
    WHERE s.namespace = $1 AND s.schedule = $2 AND s.run_id = e.run_id AND NOT e.old AND s.cancel_round IS NOT NULL
)
DELETE FROM schedule_runs AS s
USING ended AS e
WHERE s.namespace = $1 AND s.schedule = $2 AND s.run_id = e.run_id AND e.old

-- name: list_schedule_runs
-- Lists the runs noted of a schedule, newest first, with their first events where those are kept.
SELECT s.run_id, s.fire_time, s.triggered, r.state, coalesce(e.header, ''::bytea) AS submitted
FROM schedule_runs AS s
    JOIN runs AS r USING (namespace, run_id)
    LEFT JOIN events AS e ON e.namespace = r.namespace AND e.run_id = r.run_id AND e.sequence = 1
WHERE s.namespace = $1 AND s.schedule = $2
ORDER BY s.run_id DESC
LIMIT $3

-- name: list_unfinished
-- Lists the runs noted of a schedule that have not ended.
SELECT s.run_id
FROM schedule_runs AS s JOIN runs AS r USING (namespace, run_id)
WHERE s.namespace = $1 AND s.schedule = $2 AND r.end_time IS NULL
ORDER BY s.run_id DESC
LIMIT $3

-- name: ask_cancel
-- Notes that runs of a schedule are to be cancelled, in the round in which they are.
UPDATE schedule_runs AS s
SET cancel_round = r.round
FROM runs AS r
WHERE s.namespace = $1 AND s.schedule = $2 AND s.run_id = ANY ($3::uuid[])
    AND r.namespace = $1 AND r.run_id = s.run_id AND r.end_time IS NULL

-- name: list_to_cancel
-- Lists runs that a replica drives and that are to be cancelled.
SELECT s.namespace, s.run_id, s.schedule
FROM schedule_runs AS s JOIN runs AS r USING (namespace, run_id)
WHERE s.cancel_round IS NOT NULL AND s.cancel_round = r.round AND r.end_time IS NULL AND r.owner_replica = $1
LIMIT $2
