-- name: register
-- Inserts the row of a new replica process.
INSERT INTO replicas (replica_id, address, create_time, lease_expire_time)
VALUES ($1, $2, clock_timestamp(), clock_timestamp() + make_interval(secs => $3::float8))
RETURNING lease_expire_time, clock_timestamp() AS database_time

-- name: forget
-- Deletes replicas that ended more than an hour ago and own nothing unfinished.
DELETE FROM replicas AS r
WHERE r.end_time < clock_timestamp() - interval '1 hour'
    AND NOT EXISTS (
        SELECT FROM runs
        WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = r.replica_id AND end_time IS NULL
    )

-- name: renew
-- Extends a lease that is alive, and tells which catalogues changed lately: since the renewal before, and some more
-- ($3 seconds) for changes that were under way then. No row: the lease is lost.
WITH renewed AS (
    UPDATE replicas
    SET lease_expire_time = clock_timestamp() + make_interval(secs => $2::float8)
    WHERE replica_id = $1 AND end_time IS NULL AND lease_expire_time > clock_timestamp()
    RETURNING lease_expire_time
)
SELECT
    lease_expire_time,
    clock_timestamp() AS database_time,
    ARRAY(
        SELECT (namespace, version)
        FROM catalogues
        WHERE change_time > clock_timestamp() - make_interval(secs => $2::float8 + $3::float8)
    ) AS changes
FROM renewed

-- name: release
-- Ends a lease at once.
UPDATE replicas
SET end_time = clock_timestamp(), lease_expire_time = least(lease_expire_time, clock_timestamp())
WHERE replica_id = $1 AND end_time IS NULL

-- name: end_dead
-- Marks replicas whose lease is over. One whose last journal statement is still under way holds its row, and is left for
-- the next time: a replica is marked only when nothing more can come from it.
UPDATE replicas
SET end_time = clock_timestamp()
WHERE replica_id IN (
    SELECT replica_id
    FROM replicas
    WHERE end_time IS NULL AND lease_expire_time <= clock_timestamp()
    FOR NO KEY UPDATE SKIP LOCKED
)

-- name: adopt
-- Takes over unfinished runs of marked replicas and of nobody, raising their epoch; none where the own lease is over.
-- At most $2 runs, shared among the first 64 namespaces that have any.
WITH RECURSIVE lease AS MATERIALIZED (
    SELECT replica_id
    FROM replicas
    WHERE replica_id = $1 AND end_time IS NULL AND lease_expire_time > clock_timestamp()
    FOR NO KEY UPDATE
),
loser AS MATERIALIZED (
    SELECT replica_id FROM replicas WHERE end_time IS NOT NULL
    UNION ALL
    SELECT '00000000-0000-0000-0000-000000000000'::uuid
),
found AS (
    SELECT l.replica_id, f.namespace
    FROM loser AS l CROSS JOIN LATERAL (
        SELECT namespace
        FROM runs
        WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = l.replica_id AND end_time IS NULL
        ORDER BY namespace
        LIMIT 1
    ) AS f
    UNION ALL
    SELECT p.replica_id, f.namespace
    FROM found AS p CROSS JOIN LATERAL (
        SELECT namespace
        FROM runs
        WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = p.replica_id AND end_time IS NULL
            AND namespace > p.namespace
        ORDER BY namespace
        LIMIT 1
    ) AS f
),
share AS MATERIALIZED (
    SELECT replica_id, namespace, ceil($2::integer::float8 / count(*) OVER ())::integer AS size
    FROM (SELECT replica_id, namespace FROM found LIMIT 64) AS f
),
chosen AS MATERIALIZED (
    SELECT c.namespace, c.run_id
    FROM lease CROSS JOIN share AS s CROSS JOIN LATERAL (
        SELECT namespace, run_id
        FROM runs
        WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = s.replica_id AND end_time IS NULL
            AND namespace = s.namespace
        ORDER BY run_id
        LIMIT s.size
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS c
    LIMIT $2::integer
)
UPDATE runs AS r
SET owner_replica = $1, epoch = r.epoch + 1
FROM chosen AS c
WHERE r.namespace = ANY (ARRAY[c.namespace]) AND r.run_id = c.run_id  -- by key: see write_batch
RETURNING
    r.namespace, r.run_id, r.workflow, r.revision, r.state, r.epoch, r.next_sequence, r.journal_format, r.round,
    r.principal, r.channel, r.client_id, r.workspace, r.labels, r.attributes, r.create_time, r.start_time, r.end_time,
    r.expire_time

-- name: find_owner
-- Tells who owns a run, and whether the lease of the owner goes on.
SELECT
    r.owner_replica,
    coalesce(p.address, '') AS address,
    coalesce(p.end_time IS NULL AND p.lease_expire_time > clock_timestamp(), false) AS alive,
    r.end_time IS NOT NULL AS run_ended
FROM runs AS r LEFT JOIN replicas AS p ON p.replica_id = r.owner_replica
WHERE r.namespace = $1 AND r.run_id = $2

-- name: list_owned
-- Lists the unfinished runs of a replica.
SELECT
    namespace, run_id, workflow, revision, state, epoch, next_sequence, journal_format, round,
    principal, channel, client_id, workspace, labels, attributes, create_time, start_time, end_time, expire_time
FROM runs
WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = $1 AND end_time IS NULL
ORDER BY namespace, run_id
