-- name: list_replicas
-- Lists replicas with ids above $1, at most $2; those that left in good order only with $3. A lease that was released
-- ends with its replica; one that ran out has ended before. The runs of one that renews are those that it told of; of any
-- other those are counted that are still its own, up to $4.
SELECT
    r.replica_id, r.address, r.version, r.create_time, r.lease_expire_time, r.end_time,
    r.end_time IS NULL AND r.lease_expire_time > clock_timestamp() AS alive,
    coalesce(r.end_time <= r.lease_expire_time, false) AS released,
    r.active_runs IS NULL AS draining,
    CASE
        WHEN r.end_time IS NULL AND r.lease_expire_time > clock_timestamp() AND r.active_runs IS NOT NULL
            THEN r.active_runs
        ELSE (
            SELECT count(*)::integer
            FROM (
                SELECT
                FROM runs
                WHERE coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid) = r.replica_id
                    AND end_time IS NULL
                LIMIT $4
            ) AS o
        )
    END AS active_runs,
    ARRAY(
        SELECT (f.fault, f.found_count, f.first_time, f.last_time)
        FROM faults AS f
        WHERE f.replica_id = r.replica_id
        ORDER BY f.fault
    ) AS faults
FROM replicas AS r
WHERE r.replica_id > $1 AND ($3 OR coalesce(r.end_time > r.lease_expire_time, true))
ORDER BY r.replica_id
LIMIT $2

-- name: list_faults
-- Adds up what all replicas found, those that are gone too.
SELECT fault, sum(found_count)::bigint AS found_count, min(first_time) AS first_time, max(last_time) AS last_time
FROM faults
GROUP BY fault
ORDER BY fault

-- name: add_faults
-- Adds what the scrubber of a replica found; a count of 0 says that something is still there. Written twice where the
-- first answer was lost, it counts twice.
INSERT INTO faults (replica_id, fault, found_count, first_time, last_time)
SELECT $1, f.fault, f.found_count, t.now, t.now
FROM unnest($2::text[], $3::bigint[]) AS f (fault, found_count) CROSS JOIN (SELECT clock_timestamp() AS now) AS t
ORDER BY f.fault
ON CONFLICT (replica_id, fault) DO UPDATE
SET found_count = faults.found_count + excluded.found_count,
    last_time = greatest(faults.last_time, excluded.last_time)
