-- name: partitions
-- Lists the weeks of the journal that have a partition, oldest first.
SELECT child.relname AS name
FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
WHERE inhparent = 'events'::regclass AND child.relname ~ '^events_[0-9]{8}$'
ORDER BY child.relname COLLATE "C"

-- name: forget_runs
-- Deletes at most $4 runs whose ids are in a range and that ended more than $3 seconds ago, each with its request id.
-- What is locked is changing, and left for the next time. Answers how many.
WITH old AS MATERIALIZED (
    SELECT namespace, run_id, request_id
    FROM runs
    WHERE run_id >= $1 AND run_id < $2 AND end_time < clock_timestamp() - make_interval(secs => $3::float8)
    LIMIT $4
    FOR UPDATE SKIP LOCKED
),
asked AS (
    DELETE FROM requests AS q
    USING old AS o
    WHERE q.namespace = ANY (ARRAY[o.namespace]) AND q.request_id = o.request_id AND q.run_id = o.run_id
),
gone AS (
    DELETE FROM runs AS r
    USING old AS o
    WHERE r.namespace = ANY (ARRAY[o.namespace]) AND r.run_id = o.run_id  -- by key: see write_batch
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: forget_runs_and_events
-- Does the same, and deletes the events of these runs too: they are in the default partition, which is not dropped.
WITH old AS MATERIALIZED (
    SELECT namespace, run_id, request_id
    FROM runs
    WHERE run_id >= $1 AND run_id < $2 AND end_time < clock_timestamp() - make_interval(secs => $3::float8)
    LIMIT $4
    FOR UPDATE SKIP LOCKED
),
asked AS (
    DELETE FROM requests AS q
    USING old AS o
    WHERE q.namespace = ANY (ARRAY[o.namespace]) AND q.request_id = o.request_id AND q.run_id = o.run_id
),
told AS (
    DELETE FROM events AS e
    USING old AS o
    WHERE e.namespace = o.namespace AND e.run_id = o.run_id AND e.run_id >= $1 AND e.run_id < $2
),
gone AS (
    DELETE FROM runs AS r
    USING old AS o
    WHERE r.namespace = ANY (ARRAY[o.namespace]) AND r.run_id = o.run_id
    RETURNING 1
)
SELECT count(*) FROM gone

-- name: has_runs
-- Tells whether a run has an id in a range.
SELECT EXISTS (SELECT FROM runs WHERE run_id >= $1 AND run_id < $2)

-- name: limit_locks
-- Gives up soon on a lock that long reads hold, rather than queue every writer behind this one.
SET LOCAL lock_timeout = '250ms'

-- name: lock_journal
-- Keeps everybody from the journal until the transaction ends, which is to be a matter of milliseconds.
LOCK TABLE events IN ACCESS EXCLUSIVE MODE

-- name: is_partition
-- Tells whether a table is a partition of the journal.
SELECT EXISTS (
    SELECT FROM pg_inherits WHERE inhparent = 'events'::regclass AND inhrelid = to_regclass($1::text)
)

-- name: drop_partition
-- Drops one partition. The name is computed.
ALTER TABLE events DETACH PARTITION {name};
DROP TABLE {name}
