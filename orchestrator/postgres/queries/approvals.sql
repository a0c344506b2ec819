-- name: list_approvals
-- Lists the requests of a namespace that wait for a decision, of runs up to $4 and after the position $2, $3. It begins
-- at the oldest run that is under way, so that what was decided long ago costs nothing, and looks at $5 requests at most.
-- Of those that wait it gives $6 at most, and after the first none that takes the payloads above $7 bytes. Each row also
-- tells the last position and how many were looked at, and how many of them wait, up to one more than $6; without a
-- request that waits there is one row that tells this alone.
WITH asked AS MATERIALIZED (
    SELECT e.run_id, e.sequence, e.step, coalesce(octet_length(e.payload), 0) AS payload_bytes
    FROM events AS e
    WHERE e.namespace = $1
        -- APPROVAL_REQUESTED, as in the index for this.
        AND e.kind = 33
        AND e.run_id >= $2::uuid AND (e.run_id, e.sequence) > ($2::uuid, $3::bigint) AND e.run_id <= $4::uuid
        AND e.run_id >= (
            SELECT r.run_id FROM runs AS r WHERE r.namespace = $1 AND r.state = 2 AND r.round >= 1
            ORDER BY r.run_id
            LIMIT 1
        )
    ORDER BY e.run_id, e.sequence
    LIMIT $5
),
waiting AS MATERIALIZED (
    SELECT
        a.run_id, a.sequence, r.workflow, r.principal,
        row_number() OVER asking AS number, sum(a.payload_bytes) OVER asking AS total_bytes
    FROM asked AS a
    -- Looked up one by one, however the planner estimates the tables.
    CROSS JOIN LATERAL (
        SELECT workflow, principal FROM runs WHERE namespace = $1 AND run_id = a.run_id AND state = 2 OFFSET 0
    ) AS r
    LEFT JOIN LATERAL (
        SELECT true AS over
        FROM events
        WHERE namespace = $1 AND run_id = a.run_id AND sequence > a.sequence AND step = a.step
            -- STEP_SUCCEEDED, STEP_FAILED, STEP_SKIPPED, STEP_CANCELLED and APPROVAL_DECIDED end the wait.
            AND kind IN (15, 16, 17, 18, 26)
        LIMIT 1
    ) AS later ON true
    WHERE later.over IS NULL
    WINDOW asking AS (ORDER BY a.run_id, a.sequence)
    ORDER BY a.run_id, a.sequence
    LIMIT $6::bigint + 1
)
SELECT
    looked.run_id AS last_run_id, looked.sequence AS last_sequence,
    (SELECT count(*) FROM asked) AS looked_at, (SELECT count(*) FROM waiting) AS found, shown.*
FROM (SELECT 1 AS always) AS one
LEFT JOIN (SELECT run_id, sequence FROM asked ORDER BY run_id DESC, sequence DESC LIMIT 1) AS looked ON true
LEFT JOIN LATERAL (
    SELECT w.run_id, w.workflow, w.principal, e.*
    FROM waiting AS w
    CROSS JOIN LATERAL (
        SELECT sequence, kind, step, attempt, event_time, payload_type, header, payload
        FROM events
        WHERE namespace = $1 AND run_id = w.run_id AND sequence = w.sequence
        OFFSET 0
    ) AS e
    WHERE w.number <= $6 AND (w.number = 1 OR w.total_bytes <= $7::bigint)
) AS shown ON true
ORDER BY shown.run_id, shown.sequence
