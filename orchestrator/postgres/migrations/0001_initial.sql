-- The first schema. Namespace first in every key, states as smallint, nothing that depends on triggers, sequences,
-- LISTEN or advisory locks. The role baton_api sees the namespace set in `baton.namespace` and no other; the role
-- baton_engine drives runs of every namespace. Neither has any right on a partition itself.

-- --- replicas and runs ------------------------------------------------------------------------------------------------

CREATE TABLE replicas (
    replica_id uuid PRIMARY KEY,
    address text NOT NULL,
    create_time timestamptz NOT NULL,
    lease_expire_time timestamptz NOT NULL,
    -- Set when the replica gave up its lease, or another saw that it was over; nothing clears it.
    end_time timestamptz
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 200);

CREATE TABLE runs (
    namespace text NOT NULL,
    run_id uuid NOT NULL,
    workflow text NOT NULL,
    revision text NOT NULL,
    request_id text NOT NULL,
    state smallint NOT NULL,
    round integer NOT NULL DEFAULT 1,
    owner_replica uuid,
    epoch bigint NOT NULL,
    next_sequence bigint NOT NULL,
    journal_format smallint NOT NULL,
    wake_time timestamptz,
    principal text NOT NULL,
    channel text NOT NULL,
    workspace text NOT NULL,
    labels text[] NOT NULL,
    attributes jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    start_time timestamptz,
    end_time timestamptz,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (namespace, run_id),
    CONSTRAINT runs_namespace CHECK (namespace <> '' AND octet_length(namespace) <= 255),
    -- 1 PENDING, 2 RUNNING, 3 SUCCEEDED, 4 FAILED, 5 CANCELLED
    CONSTRAINT runs_state CHECK (state BETWEEN 1 AND 5),
    CONSTRAINT runs_end_time CHECK ((end_time IS NOT NULL) = (state >= 3)),
    CONSTRAINT runs_owner CHECK (owner_replica IS NULL OR end_time IS NULL),
    CONSTRAINT runs_epoch CHECK (epoch >= 1),
    CONSTRAINT runs_round CHECK (round >= 1),
    CONSTRAINT runs_next_sequence CHECK (next_sequence >= 2),
    CONSTRAINT runs_journal_format CHECK (journal_format >= 1),
    CONSTRAINT runs_request_id CHECK (octet_length(request_id) <= 1024),
    CONSTRAINT runs_attributes CHECK (jsonb_typeof(attributes) = 'object')
) WITH (fillfactor = 80);

-- A flush changes next_sequence and, rarely, start_time: neither is in an index, so that the update stays in its page.
-- The two indexes for lists hold every row; `round >= 1` only keeps them for queries that say it too. A statement that
-- looks runs up by key can then go by the primary key alone, also where it is planned while the table is empty and
-- every index seems as good.
CREATE INDEX runs_by_workflow ON runs (namespace, workflow, run_id) WHERE round >= 1;
CREATE INDEX runs_by_state ON runs (namespace, state, run_id) WHERE round >= 1;
-- For adoption: unfinished runs by owner, where the zero UUID stands for nobody.
CREATE INDEX runs_by_owner
    ON runs (coalesce(owner_replica, '00000000-0000-0000-0000-000000000000'::uuid), namespace, run_id)
    WHERE end_time IS NULL;

CREATE TABLE requests (
    namespace text NOT NULL,
    request_id text NOT NULL,
    body_hash bytea NOT NULL,
    run_id uuid NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (namespace, request_id),
    CONSTRAINT requests_request_id CHECK (request_id <> '' AND octet_length(request_id) <= 1024),
    CONSTRAINT requests_body_hash CHECK (octet_length(body_hash) = 32)
);

-- --- the journal ------------------------------------------------------------------------------------------------------

-- Insert-only. A run id is a UUIDv7, so ranges of run ids are ranges of time: a partition is a week.
CREATE TABLE events (
    namespace text NOT NULL,
    run_id uuid NOT NULL,
    sequence bigint NOT NULL,
    epoch bigint NOT NULL,
    kind smallint NOT NULL,
    attempt integer NOT NULL,
    event_time timestamptz NOT NULL,
    step text NOT NULL,
    payload_type text NOT NULL,
    header bytea NOT NULL,
    payload bytea,
    PRIMARY KEY (namespace, run_id, sequence),
    CONSTRAINT events_sequence CHECK (sequence >= 1),
    CONSTRAINT events_epoch CHECK (epoch >= 1),
    CONSTRAINT events_kind CHECK (kind >= 1),
    CONSTRAINT events_attempt CHECK (attempt >= 0),
    CONSTRAINT events_header CHECK (octet_length(header) BETWEEN 1 AND 1048576),
    CONSTRAINT events_payload CHECK (octet_length(payload) <= 1048576),
    CONSTRAINT events_payload_type CHECK (payload IS NOT NULL OR payload_type = '')
) PARTITION BY RANGE (run_id);

-- Takes run ids of weeks that have no partition; stays empty where partitions are made ahead.
CREATE TABLE events_default PARTITION OF events DEFAULT;

-- --- the catalogue ----------------------------------------------------------------------------------------------------

CREATE TABLE catalogues (
    namespace text PRIMARY KEY,
    version bigint NOT NULL,
    change_time timestamptz NOT NULL,
    CONSTRAINT catalogues_version CHECK (version >= 1)
);

CREATE INDEX catalogues_by_change_time ON catalogues (change_time);

CREATE TABLE workflows (
    namespace text NOT NULL,
    workflow text NOT NULL,
    revision text NOT NULL,
    delete_time timestamptz,
    PRIMARY KEY (namespace, workflow),
    CONSTRAINT workflows_workflow CHECK (workflow <> '')
);

CREATE TABLE workflow_revisions (
    namespace text NOT NULL,
    workflow text NOT NULL,
    revision text NOT NULL,
    definition bytea NOT NULL,
    contract_digests text[] NOT NULL,
    create_time timestamptz NOT NULL,
    -- Time at which it last became the newest of its name.
    apply_time timestamptz NOT NULL,
    PRIMARY KEY (namespace, workflow, revision),
    CONSTRAINT workflow_revisions_revision CHECK (revision <> ''),
    CONSTRAINT workflow_revisions_definition CHECK (octet_length(definition) <= 16777216)
);

CREATE TABLE contracts (
    namespace text NOT NULL,
    digest text NOT NULL,
    files bytea NOT NULL,
    services text[] NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (namespace, digest),
    CONSTRAINT contracts_digest CHECK (digest <> ''),
    CONSTRAINT contracts_files CHECK (octet_length(files) BETWEEN 1 AND 16777216)
);

CREATE TABLE workers (
    namespace text NOT NULL,
    worker text NOT NULL,
    max_in_flight integer NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (namespace, worker),
    CONSTRAINT workers_worker CHECK (worker <> ''),
    CONSTRAINT workers_max_in_flight CHECK (max_in_flight >= 1)
);

CREATE TABLE endpoints (
    namespace text NOT NULL,
    worker text NOT NULL,
    address text NOT NULL,
    contract_digest text NOT NULL,
    draining boolean NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (namespace, worker, address),
    CONSTRAINT endpoints_address CHECK (address <> '')
);

CREATE TABLE signing_keys (
    purpose text PRIMARY KEY,
    secret bytea NOT NULL,
    create_time timestamptz NOT NULL,
    CONSTRAINT signing_keys_secret CHECK (octet_length(secret) = 32)
);

-- --- rights -----------------------------------------------------------------------------------------------------------

ALTER TABLE replicas ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE runs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE requests ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE events_default ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE catalogues ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE workflows ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE workflow_revisions ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE contracts ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE workers ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE endpoints ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE signing_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

CREATE POLICY of_namespace ON runs FOR SELECT TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_namespace ON requests FOR SELECT TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_namespace ON events FOR SELECT TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_namespace ON catalogues TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_namespace ON workflows TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_namespace ON workflow_revisions TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_namespace ON contracts TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_namespace ON workers TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_namespace ON endpoints TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));

GRANT SELECT ON runs, requests, events TO baton_api;
GRANT SELECT, INSERT, UPDATE ON catalogues, workflows, workflow_revisions TO baton_api;
GRANT SELECT, INSERT ON contracts TO baton_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON workers, endpoints TO baton_api;

CREATE POLICY of_engine ON replicas TO baton_engine USING (true);
CREATE POLICY of_engine ON runs TO baton_engine USING (true);
CREATE POLICY of_engine ON requests TO baton_engine USING (true);
CREATE POLICY of_engine ON events TO baton_engine USING (true);
CREATE POLICY of_engine ON catalogues FOR SELECT TO baton_engine USING (true);
CREATE POLICY of_engine ON signing_keys TO baton_engine USING (true);

GRANT SELECT, INSERT, UPDATE, DELETE ON replicas TO baton_engine;
GRANT SELECT, INSERT, UPDATE ON runs TO baton_engine;
GRANT SELECT, INSERT ON requests, events, signing_keys TO baton_engine;
GRANT SELECT ON catalogues TO baton_engine;
