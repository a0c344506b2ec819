-- name: get_run
-- Reads one run.
SELECT
    namespace, run_id, workflow, revision, state, epoch, next_sequence, journal_format, round,
    principal, channel, client_id, workspace, labels, attributes, create_time, start_time, end_time, expire_time
FROM runs
WHERE namespace = $1 AND run_id = $2

-- name: list_runs
-- Lists runs of a namespace that meet every term, newest first. Each term is one of the fragments below; `round >= 1`
-- opens the indexes for lists.
SELECT
    namespace, run_id, workflow, revision, state, epoch, next_sequence, journal_format, round,
    principal, channel, client_id, workspace, labels, attributes, create_time, start_time, end_time, expire_time
FROM runs
WHERE namespace = $1 AND round >= 1
{terms}
ORDER BY run_id DESC
LIMIT $2

-- name: term_before
-- Term: older than a run.
AND run_id < ${value}::uuid

-- name: term_workflow
-- Term: the workflow's name.
AND workflow {comparison} ${value}::text

-- name: term_revision
-- Term: the revision.
AND revision {comparison} ${value}::text

-- name: term_state
-- Term: the state's number.
AND state {comparison} ${value}::smallint

-- name: term_principal
-- Term: who submitted the run.
AND principal {comparison} ${value}::text

-- name: term_channel
-- Term: where the request came from.
AND channel {comparison} ${value}::text

-- name: term_client_id
-- Term: the program that submitted the run.
AND client_id {comparison} ${value}::text

-- name: term_workspace
-- Term: the workspace.
AND workspace {comparison} ${value}::text

-- name: term_labels
-- Term: has a label.
AND ${value}::text = ANY (labels)

-- name: term_create_time
-- Term: the time of submission.
AND create_time {comparison} ${value}::timestamptz

-- name: term_end_time
-- Term: the time of the end.
AND end_time {comparison} ${value}::timestamptz

-- name: term_attributes
-- Term: the value of an attribute.
AND attributes ->> ${key}::text {comparison} ${value}::text

-- name: snapshot
-- Tells which transactions are over now.
SELECT pg_current_snapshot()::text AS snapshot

-- name: list_ended
-- Lists runs of a namespace that meet every term and ended in transactions that were not over in a snapshot, and are
-- now, but for those that a replica wrote itself; in the order of these transactions, none of which is split. Each row
-- also tells which transactions are over now; without runs there is one row that tells this alone.
SELECT now.snapshot::text AS snapshot, ended.*
FROM (SELECT pg_current_snapshot() AS snapshot) AS now
LEFT JOIN LATERAL (
    SELECT
        namespace, run_id, workflow, revision, state, epoch, next_sequence, journal_format, round,
        principal, channel, client_id, workspace, labels, attributes, create_time, start_time, end_time, expire_time,
        end_xid::text AS end_xid
    FROM runs
    WHERE namespace = $1
        AND end_xid >= pg_snapshot_xmin($3::text::pg_snapshot)
        -- Only a table that was restored from another cluster has others.
        AND end_xid < pg_snapshot_xmax(now.snapshot)
        AND NOT pg_visible_in_snapshot(end_xid, $3::text::pg_snapshot)
        AND end_replica IS DISTINCT FROM $4::uuid
{terms}
    ORDER BY runs.end_xid
    FETCH FIRST ($2::bigint) ROWS WITH TIES
) AS ended ON true

-- name: find_request
-- Finds the run and the body hash of a request_id.
SELECT run_id, body_hash FROM requests WHERE namespace = $1 AND request_id = $2

-- name: count_unfinished
-- Counts the runs of a namespace in some states, by revision, those with most of them first; each row also tells how
-- many revisions there are in all. Each state is looked up by its index, for which `round >= 1` is said.
SELECT r.workflow, r.revision, count(*) AS runs, count(*) OVER () AS revisions
FROM unnest($3::smallint[]) AS wanted (state)
CROSS JOIN LATERAL (
    SELECT workflow, revision FROM runs WHERE namespace = $1 AND state = wanted.state AND round >= 1 OFFSET 0
) AS r
GROUP BY r.workflow, r.revision
ORDER BY runs DESC, r.workflow, r.revision
LIMIT $2
