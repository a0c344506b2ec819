-- name: guard
-- Tells whether row level security binds the current role and whether this is a standby, and makes commits durable where
-- the server's default is not.
SELECT
    pg_is_in_recovery() AS is_standby,
    rolsuper AS is_superuser,
    rolbypassrls AS bypasses_row_security,
    CASE WHEN current_setting('synchronous_commit') = 'off' AND current_setting('fsync') = 'on'
        THEN set_config('synchronous_commit', 'on', false)
    END AS synchronous_commit
FROM pg_roles
WHERE rolname = current_user

-- name: history
-- Names the history of a primary: its cluster, and the timeline, which each promotion and each restore to a point in time
-- begins anew.
SELECT system_identifier || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8) AS name FROM pg_control_system()

-- name: begin_in_namespace
-- Begins a transaction that sees one namespace; its name comes as hexadecimal digits of its UTF-8.
BEGIN; SELECT set_config('baton.namespace', convert_from(decode('{namespace_hex}', 'hex'), 'UTF8'), true)

-- name: nothing
-- Asks for an answer, and does nothing.
SELECT

-- name: commit
-- Ends a transaction and keeps what it did.
COMMIT

-- name: rollback
-- Ends a transaction and undoes what it did.
ROLLBACK
