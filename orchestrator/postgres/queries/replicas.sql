-- name: register
-- Inserts the row of a new replica process.
INSERT INTO replicas (replica_id, address, create_time, lease_expire_time, version)
VALUES ($1, $2, clock_timestamp(), clock_timestamp() + make_interval(secs => $3::float8), $4)
RETURNING lease_expire_time, clock_timestamp() AS database_time

-- name: forget
-- Deletes replicas that ended more than an hour ago and own nothing unfinished.
DELETE FROM replicas AS r
WHERE r.end_time < clock_timestamp() - interval '1 hour'
    AND NOT EXISTS (SELECT FROM replica_sets AS s WHERE s.purpose = 'limits' AND r.replica_id = ANY (s.members))
    AND NOT EXISTS (
        SELECT FROM runs
        WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = r.replica_id AND end_time IS NULL
    )

-- name: forget_finders
-- Adds up what replicas found that there is no row of any more, so that what was found stays known in a row a fault.
WITH gone AS MATERIALIZED (
    SELECT f.replica_id, f.fault
    FROM faults AS f
    WHERE f.replica_id <> '00000000-0000-0000-0000-000000000000'::uuid
        AND NOT EXISTS (SELECT FROM replicas AS r WHERE r.replica_id = f.replica_id)
    FOR UPDATE SKIP LOCKED
),
moved AS (
    DELETE FROM faults AS f
    USING gone AS g
    WHERE f.replica_id = g.replica_id AND f.fault = g.fault
    RETURNING f.fault, f.found_count, f.first_time, f.last_time
)
INSERT INTO faults (replica_id, fault, found_count, first_time, last_time)
SELECT '00000000-0000-0000-0000-000000000000'::uuid, fault, sum(found_count)::bigint, min(first_time), max(last_time)
FROM moved
GROUP BY fault
ORDER BY fault
ON CONFLICT (replica_id, fault) DO UPDATE
SET found_count = faults.found_count + excluded.found_count,
    first_time = least(faults.first_time, excluded.first_time),
    last_time = greatest(faults.last_time, excluded.last_time)

-- name: join_set
-- Takes a new replica process into the set. It is in it before it holds a permit.
UPDATE replica_sets
SET generation = generation + 1, members = members || $1::uuid
WHERE purpose = 'limits' AND NOT $1::uuid = ANY (members)

-- name: leave_set
-- Takes a replica that leaves in good order, and holds nothing any more, out of the set.
UPDATE replica_sets
SET generation = generation + 1, members = array_remove(members, $1::uuid), leave_time = clock_timestamp()
WHERE purpose = 'limits' AND $1::uuid = ANY (members)

-- name: leave_dead
-- Takes replicas out of the set that are seen to be marked: nothing more can come from them. One whose row is not seen
-- may have just joined, and stays.
WITH now AS MATERIALIZED (SELECT clock_timestamp() AS time)
UPDATE replica_sets AS s
SET generation = s.generation + 1,
    members = ARRAY(
        SELECT m.replica_id
        FROM unnest(s.members) AS m (replica_id)
        WHERE NOT EXISTS (
            SELECT FROM replicas AS r WHERE r.replica_id = m.replica_id AND r.end_time IS NOT NULL
        )
    ),
    leave_time = now.time,
    loss_time = now.time
FROM now
WHERE s.purpose = 'limits'
    AND EXISTS (SELECT FROM replicas AS r WHERE r.replica_id = ANY (s.members) AND r.end_time IS NOT NULL)

-- name: renew
-- Extends a lease, also one whose time is over, where its replica has not been marked; keeps how many runs the replica
-- drives ($4), and tells which catalogues changed since its last renewal that was answered ($5; the time of a lease ago
-- where there was none), and some more ($3 seconds) for changes that were under way then; and what replicas there are.
-- No row: the lease is lost.
WITH renewed AS (
    UPDATE replicas
    SET lease_expire_time = clock_timestamp() + make_interval(secs => $2::float8), active_runs = $4
    WHERE replica_id = $1 AND end_time IS NULL
    RETURNING lease_expire_time
)
SELECT
    lease_expire_time,
    clock_timestamp() AS database_time,
    ARRAY(
        SELECT (namespace, version)
        FROM catalogues
        WHERE change_time
            > coalesce($5::timestamptz, clock_timestamp() - make_interval(secs => $2::float8))
            - make_interval(secs => $3::float8)
    ) AS changes,
    s.generation,
    s.leave_time,
    s.loss_time,
    ARRAY(
        SELECT (r.replica_id, r.address, CASE WHEN r.end_time IS NULL THEN r.active_runs END)
        FROM replicas AS r
        WHERE r.replica_id = ANY (s.members)
        ORDER BY r.replica_id
    ) AS members
FROM renewed CROSS JOIN replica_sets AS s
WHERE s.purpose = 'limits'

-- name: release
-- Ends a lease at once, and the replica in the same instant: one that lost its lease has a later end (list_replicas).
WITH now AS MATERIALIZED (SELECT clock_timestamp() AS time)
UPDATE replicas
SET end_time = now.time, lease_expire_time = least(lease_expire_time, now.time)
FROM now
WHERE replica_id = $1 AND end_time IS NULL

-- name: give_up
-- Ends a lease at once, and marks its replica as any whose lease ran out: it is none that left in good order.
WITH now AS MATERIALIZED (SELECT clock_timestamp() AS time)
UPDATE replicas
SET end_time = now.time, lease_expire_time = least(lease_expire_time, now.time - interval '1 microsecond')
FROM now
WHERE replica_id = $1 AND end_time IS NULL

-- name: is_marked
-- Tells whether a replica is marked, or unknown: its lease is not to be had again.
SELECT NOT EXISTS (SELECT FROM replicas WHERE replica_id = $1 AND end_time IS NULL) AS marked

-- name: end_dead
-- Marks replicas whose lease is over, and was over by the time $2 where that is given, but the one that asks ($1). One
-- whose last journal statement is still under way holds its row, and is left for the next time: a replica is marked only
-- when nothing more can come from it.
UPDATE replicas
SET end_time = clock_timestamp()
WHERE replica_id IN (
    SELECT replica_id
    FROM replicas
    WHERE end_time IS NULL AND lease_expire_time <= least($2::timestamptz, clock_timestamp())
        AND replica_id <> $1
    FOR NO KEY UPDATE SKIP LOCKED
)

-- name: marked
-- Tells which replicas are marked, but those that are known to have left nothing ($1).
SELECT replica_id FROM replicas WHERE end_time IS NOT NULL AND replica_id <> ALL ($1::uuid[])

-- name: emptied
-- Tells which of these replicas own nothing unfinished. Of one that is marked that stays so: nothing comes from it.
SELECT r.replica_id
FROM unnest($1::uuid[]) AS r (replica_id)
WHERE (
    -- With a limit it is not turned into a join, which reads the index whole.
    SELECT true
    FROM runs
    WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = r.replica_id AND end_time IS NULL
    LIMIT 1
) IS NULL

-- name: adopt
-- Takes over unfinished runs of marked replicas ($5 of those that may have any), raising their epoch; none where the own
-- lease is over, and none whose journal is in a format that the replica does not read ($3). What it writes from now on may
-- be in its own format ($4). At most $2 runs, shared among the first 64 namespaces that have any. `handed_over`: its owner
-- was stopped in good order (release).
WITH RECURSIVE lease AS MATERIALIZED (
    SELECT replica_id
    FROM replicas
    WHERE replica_id = $1 AND end_time IS NULL AND lease_expire_time > clock_timestamp()
    FOR NO KEY UPDATE
),
loser AS MATERIALIZED (
    SELECT replica_id, end_time <= lease_expire_time AS released
    FROM replicas
    WHERE replica_id = ANY ($5::uuid[]) AND end_time IS NOT NULL
),
found AS (
    SELECT l.replica_id, l.released, f.namespace
    FROM loser AS l CROSS JOIN LATERAL (
        SELECT namespace
        FROM runs
        WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = l.replica_id AND end_time IS NULL
        ORDER BY namespace
        LIMIT 1
    ) AS f
    UNION ALL
    SELECT p.replica_id, p.released, f.namespace
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
    SELECT replica_id, released, namespace, ceil($2::integer::float8 / count(*) OVER ())::integer AS size
    FROM (SELECT replica_id, released, namespace FROM found LIMIT 64) AS f
),
chosen AS MATERIALIZED (
    SELECT c.namespace, c.run_id, s.released
    FROM lease CROSS JOIN share AS s CROSS JOIN LATERAL (
        SELECT namespace, run_id
        FROM runs
        WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = s.replica_id AND end_time IS NULL
            AND namespace = s.namespace AND journal_format = ANY ($3::smallint[])
        ORDER BY run_id
        LIMIT s.size
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS c
    LIMIT $2::integer
)
UPDATE runs AS r
SET owner_replica = $1, epoch = r.epoch + 1, wake_time = NULL,
    journal_format = greatest(r.journal_format, $4::smallint)
FROM chosen AS c
WHERE r.namespace = ANY (ARRAY[c.namespace]) AND r.run_id = c.run_id  -- by key: see write_batch
RETURNING
    r.namespace, r.run_id, r.workflow, r.revision, r.state, r.epoch, r.next_sequence, r.journal_format, r.round,
    r.principal, r.channel, r.client_id, r.workspace, r.labels, r.attributes, r.create_time, r.start_time, r.end_time,
    r.expire_time, c.released AS handed_over

-- name: park
-- Gives runs away until their time comes, under the lease of their owner and the owner, the epoch and the last sequence
-- of each run. What poked a run before stands: its time has come already. No time is long past: see oldest_parked. Answers
-- whether the lease is alive.
WITH lease AS MATERIALIZED (
    SELECT replica_id
    FROM replicas
    WHERE replica_id = $1 AND end_time IS NULL AND lease_expire_time > clock_timestamp()
    FOR NO KEY UPDATE
),
parked AS (
    UPDATE runs AS r
    SET owner_replica = NULL,
        wake_time = greatest(
            least(r.wake_time, timestamptz 'epoch' + p.wake_time * interval '1 microsecond'),
            clock_timestamp() - interval '1 second'
        )
    FROM lease AS l CROSS JOIN unnest($2::text[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[])
        AS p (namespace, run_id, epoch, next_sequence, wake_time)
    WHERE r.namespace = ANY (ARRAY[p.namespace]) AND r.run_id = p.run_id  -- by key: see write_batch
        AND r.owner_replica = l.replica_id AND r.epoch = p.epoch AND r.next_sequence = p.next_sequence
)
SELECT EXISTS (SELECT FROM lease) AS leased

-- name: wake
-- Takes over at most $2 runs of nobody whose time comes within $3 seconds, raising their epoch; none where the own lease
-- is over, and none in a format that the replica does not read ($4): see adopt. Those that are due first are shared
-- among their namespaces: eight times as many as are taken are looked at, and those skipped that other replicas take at
-- the same time. None whose time is before $6, where that is given.
-- "coalesce(...)" in place of "end_time IS NULL", here and below, keeps a look by key from the indexes of that condition.
WITH lease AS MATERIALIZED (
    SELECT replica_id
    FROM replicas
    WHERE replica_id = $1 AND end_time IS NULL AND lease_expire_time > clock_timestamp()
    FOR NO KEY UPDATE
),
due AS MATERIALIZED (
    SELECT namespace, run_id, wake_time, row_number() OVER (PARTITION BY namespace ORDER BY wake_time) AS turn
    FROM (
        SELECT namespace, run_id, coalesce(wake_time, '-infinity'::timestamptz) AS wake_time
        FROM runs
        WHERE owner_replica IS NULL AND end_time IS NULL AND journal_format = ANY ($4::smallint[])
            AND coalesce(wake_time, '-infinity'::timestamptz)
                <= statement_timestamp() + make_interval(secs => $3::float8)
            AND coalesce(wake_time, '-infinity'::timestamptz) >= coalesce($6::timestamptz, '-infinity'::timestamptz)
        ORDER BY coalesce(wake_time, '-infinity'::timestamptz)
        LIMIT $2::integer * 8
    ) AS d
),
first AS MATERIALIZED (
    SELECT namespace, run_id FROM due ORDER BY turn, wake_time
),
chosen AS MATERIALIZED (
    SELECT c.namespace, c.run_id
    FROM lease CROSS JOIN first AS f CROSS JOIN LATERAL (
        SELECT r.namespace, r.run_id
        FROM runs AS r
        WHERE r.namespace = ANY (ARRAY[f.namespace]) AND r.run_id = f.run_id
            AND r.owner_replica IS NULL AND coalesce(r.end_time, 'infinity') = 'infinity'
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS c
    LIMIT $2::integer
)
UPDATE runs AS r
SET owner_replica = $1, epoch = r.epoch + 1, wake_time = NULL,
    journal_format = greatest(r.journal_format, $5::smallint)
FROM chosen AS c
WHERE r.namespace = ANY (ARRAY[c.namespace]) AND r.run_id = c.run_id
RETURNING
    r.namespace, r.run_id, r.workflow, r.revision, r.state, r.epoch, r.next_sequence, r.journal_format, r.round,
    r.principal, r.channel, r.client_id, r.workspace, r.labels, r.attributes, r.create_time, r.start_time, r.end_time,
    r.expire_time

-- name: oldest_parked
-- Tells a time before which no run waits that may be taken ($1, as in wake), nor will: that of the oldest one that waits
-- from $2 on, and at most what is $3 seconds past. Who lets the time of a run come writes the time of then, and has
-- committed that many seconds later.
SELECT least(
    (
        SELECT coalesce(wake_time, '-infinity'::timestamptz)
        FROM runs
        WHERE owner_replica IS NULL AND end_time IS NULL AND journal_format = ANY ($1::smallint[])
            AND coalesce(wake_time, '-infinity'::timestamptz) >= coalesce($2::timestamptz, '-infinity'::timestamptz)
        ORDER BY coalesce(wake_time, '-infinity'::timestamptz)
        LIMIT 1
    ),
    statement_timestamp() - make_interval(secs => $3::float8)
) AS time

-- name: claim
-- Takes one unfinished run of nobody or of a marked replica over, raising its epoch; not where the own lease is over, or
-- where its journal is in a format that the replica does not read ($4): see adopt, also for `handed_over`.
WITH lease AS MATERIALIZED (
    SELECT replica_id
    FROM replicas
    WHERE replica_id = $1 AND end_time IS NULL AND lease_expire_time > clock_timestamp()
    FOR NO KEY UPDATE
),
before AS MATERIALIZED (
    SELECT coalesce(p.end_time <= p.lease_expire_time, false) AS handed_over
    FROM runs AS r LEFT JOIN replicas AS p ON p.replica_id = r.owner_replica
    WHERE r.namespace = $2 AND r.run_id = $3
)
UPDATE runs AS r
SET owner_replica = l.replica_id, epoch = r.epoch + 1, wake_time = NULL,
    journal_format = greatest(r.journal_format, $5::smallint)
FROM lease AS l CROSS JOIN before AS b
WHERE r.namespace = $2 AND r.run_id = $3 AND coalesce(r.end_time, 'infinity') = 'infinity'
    AND r.journal_format = ANY ($4::smallint[])
    AND (
        r.owner_replica IS NULL
        OR EXISTS (SELECT FROM replicas AS p WHERE p.replica_id = r.owner_replica AND p.end_time IS NOT NULL)
    )
RETURNING
    r.namespace, r.run_id, r.workflow, r.revision, r.state, r.epoch, r.next_sequence, r.journal_format, r.round,
    r.principal, r.channel, r.client_id, r.workspace, r.labels, r.attributes, r.create_time, r.start_time, r.end_time,
    r.expire_time, b.handed_over

-- name: poke
-- Lets the time of runs come now, whoever owns them: of one that is not parked, when it is.
UPDATE runs AS r
SET wake_time = least(r.wake_time, clock_timestamp())
FROM unnest($1::text[], $2::uuid[]) AS p (namespace, run_id)
WHERE r.namespace = ANY (ARRAY[p.namespace]) AND r.run_id = p.run_id  -- by key: see write_batch
    AND coalesce(r.end_time, 'infinity') = 'infinity'

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
