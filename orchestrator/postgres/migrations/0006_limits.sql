-- Limits on calls, and the set of replicas that their permits are counted among.

CREATE TABLE limits (
    namespace text NOT NULL,
    name text NOT NULL,
    -- 1 METHOD, 2 WORKER, 3 NAMESPACE, 4 KEY
    scope smallint NOT NULL,
    target text NOT NULL,
    -- 0: not bounded.
    max_in_flight integer NOT NULL,
    -- 0: no rate.
    rate_count integer NOT NULL,
    rate_per_us bigint NOT NULL,
    rate_burst integer NOT NULL,
    create_time timestamptz NOT NULL,
    change_time timestamptz NOT NULL,
    PRIMARY KEY (namespace, name),
    CONSTRAINT limits_name CHECK (name <> ''),
    CONSTRAINT limits_scope CHECK (scope BETWEEN 1 AND 4),
    CONSTRAINT limits_target CHECK ((target <> '') = (scope <= 2)),
    CONSTRAINT limits_bound CHECK (max_in_flight > 0 OR rate_count > 0),
    CONSTRAINT limits_max_in_flight CHECK (max_in_flight >= 0),
    CONSTRAINT limits_rate CHECK (
        rate_count = 0 AND rate_per_us = 0 AND rate_burst = 0
        OR rate_count > 0 AND rate_per_us > 0 AND rate_burst > 0
    )
);

-- One row. A replica joins as it takes its lease and is in the set until that lease is over: whoever is not in it holds
-- no permit. Each change raises the generation, so that a generation names one set. Replicas of the version before do
-- not join, and know no limits.
CREATE TABLE replica_sets (
    purpose text PRIMARY KEY,
    generation bigint NOT NULL,
    members uuid[] NOT NULL,
    -- When a replica last left, and when one was last taken out that had not left in good order.
    leave_time timestamptz,
    loss_time timestamptz
) WITH (fillfactor = 50);

INSERT INTO replica_sets (purpose, generation, members) VALUES ('limits', 1, '{}');

ALTER TABLE limits ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE replica_sets ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

CREATE POLICY of_namespace ON limits TO baton_api
    USING (namespace = nullif(current_setting('baton.namespace', true), ''));
CREATE POLICY of_engine ON replica_sets TO baton_engine USING (true);

GRANT SELECT, INSERT, UPDATE, DELETE ON limits TO baton_api;
GRANT SELECT, UPDATE ON replica_sets TO baton_engine;
