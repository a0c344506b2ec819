-- What scrubbers found that should not exist, counted for each replica; what replicas found that are gone is added up
-- under the id 0. So there is a row a fault for each replica that is known, and one more.

CREATE TABLE faults (
    replica_id uuid NOT NULL,
    fault text NOT NULL,
    found_count bigint NOT NULL,
    first_time timestamptz NOT NULL,
    last_time timestamptz NOT NULL,
    PRIMARY KEY (replica_id, fault),
    CONSTRAINT faults_fault CHECK (fault <> '' AND octet_length(fault) <= 63),
    CONSTRAINT faults_found_count CHECK (found_count >= 0),
    CONSTRAINT faults_times CHECK (first_time <= last_time)
);

ALTER TABLE faults ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY of_engine ON faults TO baton_engine USING (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON faults TO baton_engine;

-- Version of the program of each replica; empty for one of the version before.
ALTER TABLE replicas ADD COLUMN version text NOT NULL DEFAULT '';
