-- Who submitted a run, and in which transaction by whom it ended: what watches of many runs go by. A transaction stands
-- where a time could not: which transactions were over at some moment is told by a snapshot, and nothing that commits
-- late is passed over. Replicas of the version before write neither; the ends that they write meanwhile are not watched.

ALTER TABLE runs
    ADD COLUMN client_id text NOT NULL DEFAULT '',
    ADD COLUMN end_xid xid8,
    ADD COLUMN end_replica uuid;

-- Holds nothing yet, so that it is made by one pass over the table. Written once a run, with its last event.
CREATE INDEX runs_by_end ON runs (namespace, end_xid) WHERE end_xid IS NOT NULL;
