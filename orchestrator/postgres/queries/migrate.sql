-- name: make_roles
-- Makes the two roles where they are missing and lets the current user act as them. Roles belong to the whole cluster.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['baton_api', 'baton_engine'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOINHERIT', wanted);
        END IF;
        IF NOT pg_has_role(current_user, wanted, 'MEMBER') THEN
            EXECUTE format('GRANT %I TO %I', wanted, current_user);
        END IF;
    END LOOP;
END
$$

-- name: make_bookkeeping
-- Makes the table of applied migrations. The row of version 0 is the lock that every starter takes.
CREATE TABLE IF NOT EXISTS schema_migrations (
    version integer PRIMARY KEY,
    name text NOT NULL,
    checksum text NOT NULL,
    apply_time timestamptz NOT NULL
);
ALTER TABLE schema_migrations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS of_everyone ON schema_migrations;
CREATE POLICY of_everyone ON schema_migrations USING (true);
GRANT SELECT ON schema_migrations TO baton_api, baton_engine;
INSERT INTO schema_migrations VALUES (0, 'lock', '', clock_timestamp()) ON CONFLICT DO NOTHING;
DO $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO baton_api, baton_engine', current_schema());
END
$$

-- name: has_bookkeeping
-- Tells whether the table of applied migrations is there.
SELECT to_regclass('schema_migrations') IS NOT NULL

-- name: wait_for_lock
-- Lets the next statements wait for another starter, up to a minute.
SET LOCAL lock_timeout = '60s'

-- name: take_lock
-- Takes the lock of the migrations until the transaction ends.
SELECT version FROM schema_migrations WHERE version = 0 FOR UPDATE

-- name: limit_locks
-- Gives up on a lock that running replicas hold, rather than queue everyone behind this migration.
SET LOCAL lock_timeout = '5s'

-- name: applied
-- Lists applied migrations.
SELECT version, name, checksum FROM schema_migrations WHERE version > 0 ORDER BY version

-- name: record
-- Records an applied migration.
INSERT INTO schema_migrations (version, name, checksum, apply_time) VALUES ($1, $2, $3, clock_timestamp())

-- name: now_ms
-- The time by which weeks are made and dropped, in milliseconds since the Unix epoch.
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint

-- name: partitions
-- Lists the partitions of the journal.
SELECT child.relname AS name
FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
WHERE inhparent = 'events'::regclass

-- name: make_partition
-- Makes one partition of the journal, with no right for anyone but its owner. The name and both bounds are computed.
CREATE TABLE {name} (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING INDEXES);
ALTER TABLE {name} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{end}')
