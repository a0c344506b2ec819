-- Schedules, and the runs that they started. The role baton_api keeps them within its namespace; the role baton_engine
-- only finds and claims what is due, and finds what is to be cancelled.

CREATE TABLE schedules (
    namespace text NOT NULL,
    schedule text NOT NULL,
    -- A baton.v1.Schedule without the input of its runs, and that input, which lists leave out.
    definition bytea NOT NULL,
    input bytea NOT NULL,
    principal text NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    version bigint NOT NULL,
    -- The first firing that is not dealt with, and the one that waits for runs to end.
    next_time timestamptz,
    waiting_time timestamptz,
    -- When a replica looks at it next; nothing while it is paused or has ended.
    due_time timestamptz,
    claim_replica uuid,
    claim_expire_time timestamptz,
    pause_time timestamptz,
    pause_note text NOT NULL DEFAULT '',
    pause_principal text NOT NULL DEFAULT '',
    fired_count bigint NOT NULL DEFAULT 0,
    skipped_count bigint NOT NULL DEFAULT 0,
    missed_count bigint NOT NULL DEFAULT 0,
    refused_count bigint NOT NULL DEFAULT 0,
    refusal_time timestamptz,
    refusal_reason text NOT NULL DEFAULT '',
    refusal_message text NOT NULL DEFAULT '',
    PRIMARY KEY (namespace, schedule),
    CONSTRAINT schedules_namespace CHECK (namespace <> '' AND octet_length(namespace) <= 255),
    CONSTRAINT schedules_schedule CHECK (schedule <> '' AND octet_length(schedule) <= 63),
    CONSTRAINT schedules_definition CHECK (octet_length(definition) <= 65536),
    CONSTRAINT schedules_input CHECK (octet_length(input) <= 1049600),
    CONSTRAINT schedules_version CHECK (version >= 1),
    CONSTRAINT schedules_claim CHECK ((claim_replica IS NULL) = (claim_expire_time IS NULL)),
    CONSTRAINT schedules_pause CHECK (pause_time IS NULL OR due_time IS NULL)
) WITH (fillfactor = 70);

CREATE INDEX schedules_by_due_time ON schedules (due_time) WHERE due_time IS NOT NULL;

-- Of each schedule, the runs that have not ended and the newest others.
CREATE TABLE schedule_runs (
    namespace text NOT NULL,
    schedule text NOT NULL,
    run_id uuid NOT NULL,
    fire_time timestamptz NOT NULL,
    triggered boolean NOT NULL,
    -- The round of the run that is to be cancelled; one that is mended afterwards goes on.
    cancel_round integer,
    PRIMARY KEY (namespace, schedule, run_id),
    FOREIGN KEY (namespace, schedule) REFERENCES schedules (namespace, schedule) ON DELETE CASCADE
);

CREATE INDEX schedule_runs_to_cancel ON schedule_runs (namespace, run_id) WHERE cancel_round IS NOT NULL;

ALTER TABLE schedules ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE schedule_runs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

CREATE POLICY of_namespace ON schedules TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_namespace ON schedule_runs TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_engine ON schedules TO baton_engine USING (true);
CREATE POLICY of_engine ON schedule_runs FOR SELECT TO baton_engine USING (true);

GRANT SELECT, INSERT, UPDATE, DELETE ON schedules, schedule_runs TO baton_api;
GRANT SELECT ON schedules, schedule_runs TO baton_engine;
GRANT UPDATE (claim_replica, claim_expire_time) ON schedules TO baton_engine;
