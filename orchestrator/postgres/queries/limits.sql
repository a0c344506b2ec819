-- name: put_limit
-- Stores a limit in place of the one of its name. No row where that would make more than $9 in its namespace.
INSERT INTO limits
    (namespace, name, scope, target, max_in_flight, rate_count, rate_per_us, rate_burst, create_time, change_time)
SELECT
    $1::text, $2::text, $3::smallint, $4::text, $5::integer, $6::integer, $7::bigint, $8::integer,
    clock_timestamp(), clock_timestamp()
WHERE EXISTS (SELECT FROM limits WHERE namespace = $1 AND name = $2)
    OR (SELECT count(*) FROM limits WHERE namespace = $1) < $9::bigint
ON CONFLICT (namespace, name)
DO UPDATE SET scope = excluded.scope, target = excluded.target, max_in_flight = excluded.max_in_flight,
    rate_count = excluded.rate_count, rate_per_us = excluded.rate_per_us, rate_burst = excluded.rate_burst,
    change_time = excluded.change_time
RETURNING namespace, name, scope, target, max_in_flight, rate_count, rate_per_us, rate_burst, create_time, change_time

-- name: list_limits
-- Lists the limits of a namespace.
SELECT namespace, name, scope, target, max_in_flight, rate_count, rate_per_us, rate_burst, create_time, change_time
FROM limits
WHERE namespace = $1
ORDER BY name

-- name: delete_limit
-- Deletes a limit.
DELETE FROM limits WHERE namespace = $1 AND name = $2
RETURNING namespace, name, scope, target, max_in_flight, rate_count, rate_per_us, rate_burst, create_time, change_time
