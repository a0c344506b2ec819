-- name: raise_version
-- Raises the version of a namespace's catalogue, of which every replica learns with its next lease renewal. In a change
-- of workers it comes first: its row orders them.
INSERT INTO catalogues (namespace, version, change_time)
VALUES ($1, 1, clock_timestamp())
ON CONFLICT (namespace) DO UPDATE SET version = catalogues.version + 1, change_time = clock_timestamp()

-- name: list_namespaces
-- Lists the catalogues that changed last, with their versions.
SELECT namespace, version FROM catalogues ORDER BY change_time DESC LIMIT $1

-- name: lock_workflow
-- Locks a workflow's name, making it where it is new, and answers its newest revision; '' where it has none.
INSERT INTO workflows (namespace, workflow, revision)
VALUES ($1, $2, '')
ON CONFLICT (namespace, workflow) DO UPDATE SET workflow = excluded.workflow
RETURNING CASE WHEN delete_time IS NULL THEN revision ELSE '' END AS newest

-- name: put_revision
-- Stores a revision; one that is there keeps its content and gets a new apply_time.
INSERT INTO workflow_revisions
    (namespace, workflow, revision, definition, contract_digests, create_time, apply_time)
VALUES ($1, $2, $3, $4, $5::text[], $6, clock_timestamp())
ON CONFLICT (namespace, workflow, revision) DO UPDATE SET apply_time = clock_timestamp()
RETURNING namespace, workflow, revision, definition, contract_digests, create_time

-- name: set_newest
-- Makes a revision the newest of its name.
UPDATE workflows SET revision = $3, delete_time = NULL WHERE namespace = $1 AND workflow = $2

-- name: get_revision
-- Reads one revision.
SELECT namespace, workflow, revision, definition, contract_digests, create_time
FROM workflow_revisions
WHERE namespace = $1 AND workflow = $2 AND revision = $3

-- name: get_newest
-- Reads the newest revision of a name that is not deleted.
SELECT r.namespace, r.workflow, r.revision, r.definition, r.contract_digests, r.create_time
FROM workflows AS w JOIN workflow_revisions AS r USING (namespace, workflow, revision)
WHERE w.namespace = $1 AND w.workflow = $2 AND w.delete_time IS NULL

-- name: list_workflows
-- Lists the newest revision of each name, and none after those whose definitions have more than $4 bytes together.
SELECT namespace, workflow, revision, definition, contract_digests, create_time
FROM (
    SELECT e.*, sum(octet_length(definition)) OVER (ORDER BY workflow) - octet_length(definition) AS bytes_before
    FROM (
        SELECT r.namespace, r.workflow, r.revision, r.definition, r.contract_digests, r.create_time
        FROM workflows AS w JOIN workflow_revisions AS r USING (namespace, workflow, revision)
        WHERE w.namespace = $1 AND w.workflow > $2 AND w.delete_time IS NULL
        ORDER BY w.workflow
        LIMIT $3
    ) AS e
) AS f
WHERE bytes_before <= $4::bigint
ORDER BY workflow

-- name: list_revisions
-- Lists revisions of a name that is not deleted, the one applied last first, and none after those whose definitions have
-- more than $5 bytes together.
SELECT namespace, workflow, revision, definition, contract_digests, create_time
FROM (
    SELECT
        e.*,
        sum(octet_length(definition)) OVER (ORDER BY apply_time DESC, revision) - octet_length(definition) AS bytes_before
    FROM (
        SELECT r.namespace, r.workflow, r.revision, r.definition, r.contract_digests, r.create_time, r.apply_time
        FROM workflows AS w JOIN workflow_revisions AS r USING (namespace, workflow)
        WHERE w.namespace = $1 AND w.workflow = $2 AND w.delete_time IS NULL
        ORDER BY r.apply_time DESC, r.revision
        OFFSET $3 LIMIT $4
    ) AS e
) AS f
WHERE bytes_before <= $5::bigint
ORDER BY apply_time DESC, revision

-- name: delete_workflow
-- Removes a name; its revisions stay for the runs that have them.
UPDATE workflows
SET delete_time = clock_timestamp()
WHERE namespace = $1 AND workflow = $2 AND delete_time IS NULL AND revision <> ''
RETURNING revision

-- name: put_contract
-- Stores a contract under its digest.
INSERT INTO contracts (namespace, digest, files, services, create_time)
VALUES ($1, $2, $3, $4::text[], clock_timestamp())
ON CONFLICT (namespace, digest) DO NOTHING

-- name: get_contracts
-- Reads contracts by their digests.
SELECT digest, files, services FROM contracts WHERE namespace = $1 AND digest = ANY ($2::text[]) ORDER BY digest

-- name: is_registered
-- Tells whether an endpoint stands exactly as it would be put, so that nothing has to change.
SELECT 1
FROM endpoints AS e JOIN workers AS w USING (namespace, worker)
WHERE e.namespace = $1 AND e.worker = $2 AND e.address = $3 AND e.contract_digest = $4 AND NOT e.draining
    AND w.max_in_flight = coalesce($5::integer, w.max_in_flight)
    AND e.work_stream = $6 AND e.attached_replica IS NOT DISTINCT FROM $7::uuid AND e.attached_address = $8

-- name: put_worker
-- Stores a worker; without a number of calls in flight it keeps its own, or gets 100 where it is new.
INSERT INTO workers (namespace, worker, max_in_flight, create_time)
VALUES ($1, $2, coalesce($3::integer, 100), clock_timestamp())
ON CONFLICT (namespace, worker) DO UPDATE SET max_in_flight = coalesce($3::integer, workers.max_in_flight)

-- name: put_endpoint
-- Stores an endpoint as active.
INSERT INTO endpoints (
    namespace, worker, address, contract_digest, draining, create_time, work_stream, attached_replica, attached_address
)
VALUES ($1, $2, $3, $4, false, clock_timestamp(), $5, $6, $7)
ON CONFLICT (namespace, worker, address)
DO UPDATE SET contract_digest = excluded.contract_digest, draining = false, work_stream = excluded.work_stream,
    attached_replica = excluded.attached_replica, attached_address = excluded.attached_address

-- name: drain_endpoints
-- Drains one address of a worker, or all.
UPDATE endpoints SET draining = true WHERE namespace = $1 AND worker = $2 AND ($3 = '' OR address = $3)
RETURNING address

-- name: delete_endpoints
-- Deletes one address of a worker, or all.
DELETE FROM endpoints WHERE namespace = $1 AND worker = $2 AND ($3 = '' OR address = $3)
RETURNING address

-- name: delete_attached
-- Deletes an endpoint that is still attached to a replica process.
DELETE FROM endpoints WHERE namespace = $1 AND worker = $2 AND address = $3 AND attached_replica = $4
RETURNING address

-- name: delete_worker
-- Deletes a worker that has no endpoint left.
DELETE FROM workers AS w
WHERE w.namespace = $1 AND w.worker = $2
    AND NOT EXISTS (SELECT FROM endpoints AS e WHERE e.namespace = w.namespace AND e.worker = w.worker)

-- name: list_workers
-- Lists workers of a namespace with their endpoints, one row for each endpoint; all workers where the name is empty.
SELECT
    w.namespace, w.worker, w.max_in_flight, w.create_time,
    e.address, e.contract_digest, e.draining, e.create_time AS endpoint_create_time,
    e.work_stream, e.attached_replica, e.attached_address
FROM workers AS w LEFT JOIN endpoints AS e USING (namespace, worker)
WHERE w.namespace = $1 AND ($2 = '' OR w.worker = $2)
ORDER BY w.worker, e.address

-- name: put_signing_key
-- Stores the signing key unless there is one.
INSERT INTO signing_keys (purpose, secret, create_time)
VALUES ('step-token', $1, clock_timestamp())
ON CONFLICT (purpose) DO NOTHING

-- name: get_signing_key
-- Reads the signing key.
SELECT secret FROM signing_keys WHERE purpose = 'step-token'
