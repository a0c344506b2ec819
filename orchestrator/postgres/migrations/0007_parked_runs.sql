-- Runs of nobody: those that are parked until `wake_time`, and those that were given away, which have none and may be
-- taken at once. They are found by that time. Replicas of the version before take them all at once: they are then driven
-- early, and lose nothing.

CREATE INDEX runs_by_wake_time ON runs (coalesce(wake_time, '-infinity'::timestamptz))
    WHERE owner_replica IS NULL AND end_time IS NULL;
