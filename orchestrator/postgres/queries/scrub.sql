-- name: free_unknown
-- Lets at most $1 unfinished runs go whose owner has no row, of the first 64 such owners: nobody can write under it. A
-- replica's row is there before it owns anything, and until it owns nothing.
WITH RECURSIVE owner AS (
    (
        SELECT coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) AS replica_id
        FROM runs
        WHERE end_time IS NULL
        ORDER BY coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid)
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid)
        FROM runs
        WHERE end_time IS NULL
            AND coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) > o.replica_id
        ORDER BY coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid)
        LIMIT 1
    )
    FROM owner AS o
    WHERE o.replica_id IS NOT NULL
),
unknown AS MATERIALIZED (
    SELECT o.replica_id
    FROM owner AS o
    WHERE o.replica_id <> '00000000-0000-0000-0000-000000000000'::uuid
        AND NOT EXISTS (SELECT FROM replicas AS p WHERE p.replica_id = o.replica_id)
    LIMIT 64
),
chosen AS MATERIALIZED (
    SELECT c.namespace, c.run_id
    FROM unknown AS u CROSS JOIN LATERAL (
        SELECT namespace, run_id
        FROM runs
        WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = u.replica_id
            AND end_time IS NULL
        ORDER BY namespace, run_id
        LIMIT $1::integer
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS c
    LIMIT $1::integer
)
UPDATE runs AS r
SET owner_replica = NULL, wake_time = clock_timestamp()
FROM chosen AS c
WHERE r.namespace = ANY (ARRAY[c.namespace]) AND r.run_id = c.run_id  -- by key: see write_batch
RETURNING r.namespace, r.run_id

-- name: owned
-- Lists unfinished runs of a replica after a key.
SELECT namespace, run_id
FROM runs
WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = $1 AND end_time IS NULL
    AND (namespace, run_id) > ($2, $3)
ORDER BY namespace, run_id
LIMIT $4

-- name: parked
-- Lists runs that are parked for longer than $1 seconds yet, after a time and a key.
SELECT
    namespace, run_id, workflow, revision, state, epoch, next_sequence, journal_format, round,
    principal, channel, client_id, workspace, labels, attributes, create_time, start_time, end_time, expire_time,
    wake_time
FROM runs
WHERE owner_replica IS NULL AND end_time IS NULL
    AND coalesce(wake_time, '-infinity'::timestamptz) > clock_timestamp() + make_interval(secs => $1::float8)
    AND (coalesce(wake_time, '-infinity'::timestamptz), namespace, run_id)
        > (timestamptz 'epoch' + $2::bigint * interval '1 microsecond', $3, $4)
ORDER BY coalesce(wake_time, '-infinity'::timestamptz), namespace, run_id
LIMIT $5

-- name: unfinished
-- Reads a run that has not ended by its row.
SELECT
    namespace, run_id, workflow, revision, state, epoch, next_sequence, journal_format, round,
    principal, channel, client_id, workspace, labels, attributes, create_time, start_time, end_time, expire_time
FROM runs
WHERE namespace = $1 AND run_id = $2 AND coalesce(end_time, 'infinity') = 'infinity'

-- name: count_overdue
-- Counts runs of nobody that have been due, and runs of replicas whose lease has been over, for longer than $1 seconds;
-- at most $2. Without a wake time a run is due at once, which says nothing of for how long.
SELECT count(*) AS overdue
FROM (
    SELECT
    FROM replicas AS r CROSS JOIN LATERAL (
        SELECT
        FROM runs
        WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = r.replica_id AND end_time IS NULL
        LIMIT $2
    ) AS o
    WHERE r.lease_expire_time < clock_timestamp() - make_interval(secs => $1::float8)
    UNION ALL
    SELECT
    FROM runs
    WHERE owner_replica IS NULL AND end_time IS NULL
        AND coalesce(wake_time, 'infinity'::timestamptz) < clock_timestamp() - make_interval(secs => $1::float8)
        AND coalesce(wake_time, '-infinity'::timestamptz) < clock_timestamp() - make_interval(secs => $1::float8)
    LIMIT $2
) AS d

-- name: differing
-- Looks at $4 runs after a key, and lists those whose journal does not end where the row says, or ends as the row does not
-- ($5 are the kinds of ends): at unfinished runs of the owner $1, or where that is null at runs that have ended by their
-- rows. Rows and events are written by one statement, or in one transaction, so that none of them differs in a snapshot.
-- Always gives one row that tells how many were looked at, and the last of them. The half that is not asked for is not even
-- begun, by what it says of $1.
WITH looked AS MATERIALIZED (
    (
        SELECT
            namespace, run_id, workflow, revision, state, epoch, next_sequence, journal_format, round,
            principal, channel, client_id, workspace, labels, attributes, create_time, start_time, end_time, expire_time
        FROM runs
        WHERE $1::uuid IS NOT NULL
            AND coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = $1 AND end_time IS NULL
            AND (namespace, run_id) > ($2, $3)
        ORDER BY namespace, run_id
        LIMIT $4
    )
    UNION ALL
    (
        SELECT
            namespace, run_id, workflow, revision, state, epoch, next_sequence, journal_format, round,
            principal, channel, client_id, workspace, labels, attributes, create_time, start_time, end_time, expire_time
        FROM runs
        WHERE $1::uuid IS NULL AND end_time IS NOT NULL AND (namespace, run_id) > ($2, $3)
        ORDER BY namespace, run_id
        LIMIT $4
    )
),
differing AS (
    SELECT l.*
    FROM looked AS l LEFT JOIN LATERAL (
        SELECT e.sequence, e.kind
        FROM events AS e
        WHERE e.namespace = ANY (ARRAY[l.namespace]) AND e.run_id = l.run_id AND e.sequence >= l.next_sequence - 1
        ORDER BY e.sequence DESC
        LIMIT 1
    ) AS j ON true
    WHERE j.sequence IS DISTINCT FROM l.next_sequence - 1 OR (l.end_time IS NULL) = (j.kind = ANY ($5::smallint[]))
)
SELECT d.*, t.looked_count, t.last_namespace, t.last_run_id
FROM (
    SELECT
        count(*) AS looked_count,
        (array_agg(namespace ORDER BY namespace DESC, run_id DESC))[1] AS last_namespace,
        (array_agg(run_id ORDER BY namespace DESC, run_id DESC))[1] AS last_run_id
    FROM looked
) AS t LEFT JOIN differing AS d ON true

-- name: align
-- Lets the row of a run say what its journal tells, where nothing was written to it since it was read, and nobody but the
-- replica $3 owns it. Its epoch is not below that of the last event: those of a journal rise.
UPDATE runs AS r
SET state = $7,
    next_sequence = $8,
    round = $9,
    revision = $10,
    start_time = timestamptz 'epoch' + $11::bigint * interval '1 microsecond',
    end_time = timestamptz 'epoch' + $12::bigint * interval '1 microsecond',
    expire_time = timestamptz 'epoch' + $13::bigint * interval '1 microsecond',
    epoch = greatest(r.epoch, (
        SELECT e.epoch
        FROM events AS e
        WHERE e.namespace = $1 AND e.run_id = $2
        ORDER BY e.sequence DESC
        LIMIT 1
    )),
    owner_replica = CASE WHEN $12::bigint IS NULL THEN r.owner_replica END,
    wake_time = CASE WHEN $12::bigint IS NULL AND r.owner_replica IS NULL THEN clock_timestamp() END,
    end_xid = CASE WHEN $12::bigint IS NOT NULL THEN pg_current_xact_id() END,
    end_replica = NULL
WHERE r.namespace = $1 AND r.run_id = $2 AND (coalesce(r.end_time, 'infinity') <> 'infinity') = $6::boolean
    AND (r.owner_replica IS NULL OR r.owner_replica = $3::uuid) AND r.epoch = $4 AND r.next_sequence = $5
RETURNING r.run_id

-- name: remove_schedule_runs
-- Removes at most $1 of the runs that schedules keep which are gone.
DELETE FROM schedule_runs AS s
USING (
    SELECT k.namespace, k.schedule, k.run_id
    FROM schedule_runs AS k
    WHERE NOT EXISTS (SELECT FROM runs AS r WHERE r.namespace = k.namespace AND r.run_id = k.run_id)
    LIMIT $1
) AS g
WHERE s.namespace = g.namespace AND s.schedule = g.schedule AND s.run_id = g.run_id
RETURNING s.run_id

-- name: unknown_members
-- Lists at most $1 replicas of the set that there is no row of.
SELECT m.replica_id
FROM replica_sets AS s CROSS JOIN unnest(s.members) AS m (replica_id)
WHERE s.purpose = 'limits' AND NOT EXISTS (SELECT FROM replicas AS r WHERE r.replica_id = m.replica_id)
ORDER BY m.replica_id
LIMIT $1

-- name: remove_members
-- Takes replicas out of the set that were seen in it before this statement, and that there is no row of, as ones that were
-- lost. Their rows would have been there before they joined: see leave_dead for those that are seen only now.
UPDATE replica_sets AS s
SET generation = s.generation + 1,
    members = ARRAY(
        SELECT m.replica_id
        FROM unnest(s.members) AS m (replica_id)
        WHERE m.replica_id <> ALL ($1::uuid[])
            OR EXISTS (SELECT FROM replicas AS r WHERE r.replica_id = m.replica_id)
    ),
    leave_time = clock_timestamp(),
    loss_time = clock_timestamp()
WHERE s.purpose = 'limits'
    AND EXISTS (
        SELECT FROM unnest($1::uuid[]) AS g (replica_id)
        WHERE g.replica_id = ANY (s.members)
            AND NOT EXISTS (SELECT FROM replicas AS r WHERE r.replica_id = g.replica_id)
    )
RETURNING s.generation
