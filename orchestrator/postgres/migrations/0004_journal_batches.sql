-- What a batch of the journal is handed over as: an array of entries, each with its events, and an array of what begins.
-- One array of rows costs the writing process a third of an array for each column. Instants are microseconds since the
-- Unix epoch. A type that was released never changes: a new form of batch takes new types.

CREATE TYPE batch_event AS (
    sequence bigint,
    kind smallint,
    step text,
    attempt integer,
    event_time bigint,
    header bytea,
    payload bytea,
    payload_type text
);

CREATE TYPE batch_entry AS (
    namespace text,
    run_id uuid,
    epoch bigint,
    first_sequence bigint,
    next_sequence bigint,
    state smallint,
    start_time bigint,
    end_time bigint,
    events batch_event[]
);

CREATE TYPE batch_submission AS (
    position bigint,
    workflow text,
    revision text,
    request_id text,
    body_hash bytea,
    principal text,
    channel text,
    workspace text,
    labels text[],
    attributes jsonb,
    create_time bigint,
    expire_time bigint,
    journal_format smallint,
    client_id text
);
