-- name: write_batch
-- Writes events of many runs in one statement, under the lease of one replica and the owner and epoch of each run.
-- Order of locks: own replica, requests in the order of their keys, runs. Answers whether the lease is alive and which
-- entries were written, by their position in the batch, from 1; an entry is written whole or not at all.
WITH lease AS MATERIALIZED (
    SELECT replica_id
    FROM replicas
    WHERE replica_id = $1 AND end_time IS NULL AND lease_expire_time > clock_timestamp()
    FOR NO KEY UPDATE
),
entry AS MATERIALIZED (
    SELECT
        namespace, run_id, epoch, first_sequence, next_sequence, state, events, position,
        timestamptz 'epoch' + start_time * interval '1 microsecond' AS start_time,
        timestamptz 'epoch' + end_time * interval '1 microsecond' AS end_time
    FROM unnest($2::batch_entry[]) WITH ORDINALITY AS t (
        namespace, run_id, epoch, first_sequence, next_sequence, state, start_time, end_time, events, position
    )
),
submitted AS MATERIALIZED (
    SELECT
        l.replica_id, t.namespace, t.run_id, t.epoch, t.next_sequence, t.state, t.start_time, t.end_time,
        s.position, s.workflow, s.revision, s.request_id, s.body_hash, s.principal, s.channel, s.workspace,
        s.labels, s.attributes, s.journal_format, s.client_id,
        timestamptz 'epoch' + s.create_time * interval '1 microsecond' AS create_time,
        timestamptz 'epoch' + s.expire_time * interval '1 microsecond' AS expire_time
    FROM lease AS l CROSS JOIN unnest($3::batch_submission[]) AS s
    JOIN entry AS t USING (position)
),
claimed AS (
    INSERT INTO requests (namespace, request_id, body_hash, run_id, create_time)
    SELECT namespace, request_id, body_hash, run_id, create_time
    FROM submitted
    WHERE request_id <> ''
    ORDER BY namespace, request_id, position
    ON CONFLICT (namespace, request_id) DO NOTHING
    RETURNING namespace, run_id
),
begun AS (
    INSERT INTO runs (
        namespace, run_id, workflow, revision, request_id, state, owner_replica, epoch, next_sequence, journal_format,
        principal, channel, client_id, workspace, labels, attributes, create_time, start_time, end_time, expire_time,
        end_xid, end_replica
    )
    SELECT
        s.namespace, s.run_id, s.workflow, s.revision, s.request_id, s.state,
        CASE WHEN s.end_time IS NULL THEN s.replica_id END, s.epoch, s.next_sequence, s.journal_format,
        s.principal, s.channel, s.client_id, s.workspace,
        s.labels, s.attributes,
        s.create_time, s.start_time, s.end_time, s.expire_time,
        CASE WHEN s.end_time IS NOT NULL THEN pg_current_xact_id() END,
        CASE WHEN s.end_time IS NOT NULL THEN s.replica_id END
    FROM submitted AS s
    WHERE s.request_id = '' OR (s.namespace, s.run_id) IN (SELECT c.namespace, c.run_id FROM claimed AS c)
    ORDER BY s.namespace, s.run_id
    ON CONFLICT (namespace, run_id) DO NOTHING
    RETURNING namespace, run_id
),
continued AS (
    UPDATE runs AS r
    SET next_sequence = e.next_sequence,
        state = e.state,
        start_time = e.start_time,
        end_time = e.end_time,
        owner_replica = CASE WHEN e.end_time IS NULL THEN r.owner_replica END,
        end_xid = CASE WHEN e.end_time IS NOT NULL THEN pg_current_xact_id() END,
        end_replica = CASE WHEN e.end_time IS NOT NULL THEN l.replica_id END
    FROM lease AS l CROSS JOIN entry AS e
    -- "= ANY (ARRAY[...])" on the key's first column can be neither hashed nor merged: each run is looked up by its
    -- key, however the planner estimates the table, which it first sees empty.
    WHERE r.namespace = ANY (ARRAY[e.namespace]) AND r.run_id = e.run_id
        AND r.owner_replica = l.replica_id AND r.epoch = e.epoch AND r.next_sequence = e.first_sequence
    RETURNING r.namespace, r.run_id
),
written AS MATERIALIZED (
    SELECT e.position, e.namespace, e.run_id, e.epoch, e.events
    FROM entry AS e JOIN (TABLE begun UNION ALL TABLE continued) AS w USING (namespace, run_id)
),
journaled AS (
    INSERT INTO events (
        namespace, run_id, sequence, epoch, kind, attempt, event_time, step, payload_type, header, payload
    )
    SELECT
        w.namespace, w.run_id, v.sequence, w.epoch, v.kind, v.attempt,
        timestamptz 'epoch' + v.event_time * interval '1 microsecond', v.step, v.payload_type, v.header, v.payload
    FROM written AS w CROSS JOIN unnest(w.events) AS v
)
SELECT EXISTS (SELECT FROM lease) AS leased, ARRAY(SELECT position FROM written) AS positions

-- name: reopen
-- Takes ended runs, under the lease of one replica and the epoch and the last sequence of each: they stand as runs that
-- the replica owns, with nothing of the new round written. To be followed, in the same transaction, by the statement that
-- writes their first events; each run's row is locked by its key, as there.
WITH lease AS MATERIALIZED (
    SELECT replica_id
    FROM replicas
    WHERE replica_id = $1 AND end_time IS NULL AND lease_expire_time > clock_timestamp()
    FOR NO KEY UPDATE
)
UPDATE runs AS r
SET owner_replica = l.replica_id,
    epoch = e.epoch,
    state = 2,
    end_time = NULL,
    end_xid = NULL,
    end_replica = NULL,
    wake_time = NULL,
    round = e.round,
    revision = e.revision,
    expire_time = timestamptz 'epoch' + e.expire_time * interval '1 microsecond',
    journal_format = greatest(r.journal_format, e.journal_format)
FROM lease AS l CROSS JOIN unnest(
    $2::text[], $3::uuid[], $4::bigint[], $5::bigint[], $6::integer[], $7::text[], $8::bigint[], $9::smallint[]
) AS e (namespace, run_id, epoch, first_sequence, round, revision, expire_time, journal_format)
WHERE r.namespace = ANY (ARRAY[e.namespace]) AND r.run_id = e.run_id
    AND r.owner_replica IS NULL AND coalesce(r.end_time, 'infinity') <> 'infinity'
    AND r.epoch = e.epoch - 1 AND r.next_sequence = e.first_sequence

-- name: continue_batch
-- Does what `write_batch` does for a batch in which no run is new, with less to plan, to send and to set up.
WITH lease AS MATERIALIZED (
    SELECT replica_id
    FROM replicas
    WHERE replica_id = $1 AND end_time IS NULL AND lease_expire_time > clock_timestamp()
    FOR NO KEY UPDATE
),
continued AS (
    UPDATE runs AS r
    SET next_sequence = e.next_sequence,
        state = e.state,
        start_time = timestamptz 'epoch' + e.start_time * interval '1 microsecond',
        end_time = timestamptz 'epoch' + e.end_time * interval '1 microsecond',
        owner_replica = CASE WHEN e.end_time IS NULL THEN r.owner_replica END,
        end_xid = CASE WHEN e.end_time IS NOT NULL THEN pg_current_xact_id() END,
        end_replica = CASE WHEN e.end_time IS NOT NULL THEN l.replica_id END
    FROM lease AS l CROSS JOIN unnest($2::batch_entry[]) WITH ORDINALITY AS e (
        namespace, run_id, epoch, first_sequence, next_sequence, state, start_time, end_time, events, position
    )
    -- As in write_batch: each run is looked up by its key.
    WHERE r.namespace = ANY (ARRAY[e.namespace]) AND r.run_id = e.run_id
        AND r.owner_replica = l.replica_id AND r.epoch = e.epoch AND r.next_sequence = e.first_sequence
    RETURNING e.position, r.namespace, r.run_id, r.epoch, e.events
),
journaled AS (
    INSERT INTO events (
        namespace, run_id, sequence, epoch, kind, attempt, event_time, step, payload_type, header, payload
    )
    SELECT
        w.namespace, w.run_id, v.sequence, w.epoch, v.kind, v.attempt,
        timestamptz 'epoch' + v.event_time * interval '1 microsecond', v.step, v.payload_type, v.header, v.payload
    FROM continued AS w CROSS JOIN unnest(w.events) AS v
)
SELECT EXISTS (SELECT FROM lease) AS leased, ARRAY(SELECT position FROM continued) AS positions

-- name: winners
-- Finds the runs that hold request ids.
SELECT a.position, q.run_id, q.body_hash
FROM unnest($1::integer[], $2::text[], $3::text[]) AS a (position, namespace, request_id)
CROSS JOIN LATERAL (
    SELECT r.run_id, r.body_hash
    FROM requests AS r
    WHERE r.namespace = a.namespace AND r.request_id = a.request_id
    OFFSET 0
) AS q

-- name: written_rows
-- Reads back the events that may have been written under some sequences.
SELECT
    a.position, v.sequence, v.epoch, v.kind, v.attempt, v.event_time, v.step, v.payload_type, v.header, v.payload
FROM unnest($1::integer[], $2::text[], $3::uuid[], $4::bigint[], $5::bigint[])
    AS a (position, namespace, run_id, first_sequence, next_sequence)
CROSS JOIN LATERAL (
    SELECT *
    FROM events AS e
    WHERE e.namespace = a.namespace AND e.run_id = a.run_id
        AND e.sequence >= a.first_sequence AND e.sequence < a.next_sequence
    OFFSET 0
) AS v
ORDER BY a.position, v.sequence

-- name: read_events
-- Reads events of a run in order, with their payloads: at most $4, and none after those that have more than $5 bytes
-- together, each with 64 bytes beside header and payload. What is stored out of line is fetched for those alone.
SELECT sequence, kind, attempt, event_time, step, payload_type, header, payload
FROM (
    SELECT e.*, sum(event_bytes) OVER (ORDER BY sequence) - event_bytes AS bytes_before
    FROM (
        SELECT
            sequence, kind, attempt, event_time, step, payload_type, header, payload,
            octet_length(header) + coalesce(octet_length(payload), 0) + 64 AS event_bytes
        FROM events
        WHERE namespace = $1 AND run_id = $2 AND sequence > $3
        ORDER BY sequence
        LIMIT $4
    ) AS e
) AS f
WHERE bytes_before <= $5::bigint
ORDER BY sequence

-- name: read_payloads
-- Reads the payloads of some events of a run, in the order given, and none after those that have more than $4 bytes
-- together.
SELECT sequence, payload
FROM (
    SELECT
        a.position, e.sequence, e.payload,
        sum(octet_length(e.payload)) OVER (ORDER BY a.position) - octet_length(e.payload) AS bytes_before
    FROM unnest($3::bigint[]) WITH ORDINALITY AS a (sequence, position) CROSS JOIN LATERAL (
        SELECT v.sequence, v.payload
        FROM events AS v
        WHERE v.namespace = $1 AND v.run_id = $2 AND v.sequence = a.sequence AND v.payload IS NOT NULL
        OFFSET 0
    ) AS e
) AS f
WHERE bytes_before <= $4::bigint
ORDER BY position

-- name: read_first
-- Reads the first events of several runs in their order, with payloads: at most $3 of each, and none of the last ones
-- where there would be more than $4 bytes of payloads.
SELECT position, sequence, kind, attempt, event_time, step, payload_type, header, payload
FROM (
    SELECT k.position, e.*, sum(octet_length(e.payload)) OVER (ORDER BY k.position, e.sequence) AS payload_bytes
    FROM unnest($1::text[], $2::uuid[]) WITH ORDINALITY AS k (namespace, run_id, position) CROSS JOIN LATERAL (
        SELECT sequence, kind, attempt, event_time, step, payload_type, header, payload
        FROM events
        WHERE namespace = ANY (ARRAY[k.namespace]) AND run_id = k.run_id  -- by key: see write_batch
        ORDER BY sequence
        LIMIT $3::integer
    ) AS e
) AS f
WHERE coalesce(payload_bytes, 0) <= $4::bigint
ORDER BY position, sequence

-- name: read_one_of_each
-- Reads one event of each of several runs of a namespace in their order, without payloads, and none of the last ones where
-- there would be more than $4 bytes of headers.
SELECT position, sequence, kind, attempt, event_time, step, payload_type, header, NULL::bytea AS payload
FROM (
    SELECT k.position, e.*, sum(octet_length(e.header)) OVER (ORDER BY k.position) AS header_bytes
    FROM unnest($2::uuid[], $3::bigint[]) WITH ORDINALITY AS k (run_id, sequence, position) CROSS JOIN LATERAL (
        SELECT sequence, kind, attempt, event_time, step, payload_type, header
        FROM events
        WHERE namespace = $1 AND run_id = k.run_id AND sequence = k.sequence
        OFFSET 0
    ) AS e
) AS f
WHERE header_bytes <= $4::bigint
ORDER BY position

-- name: read_headers
-- Does what `read_events` does without payloads, which are not counted either.
SELECT sequence, kind, attempt, event_time, step, payload_type, header, NULL::bytea AS payload
FROM (
    SELECT e.*, sum(octet_length(header) + 64) OVER (ORDER BY sequence) - octet_length(header) - 64 AS bytes_before
    FROM (
        SELECT sequence, kind, attempt, event_time, step, payload_type, header
        FROM events
        WHERE namespace = $1 AND run_id = $2 AND sequence > $3
        ORDER BY sequence
        LIMIT $4
    ) AS e
) AS f
WHERE bytes_before <= $5::bigint
ORDER BY sequence
