-- What a campaign leaves, beside the product's own tables. Times are in microseconds since the Unix epoch.
CREATE SCHEMA chaos;

CREATE TABLE chaos.edge (earlier text, later text);
CREATE TABLE chaos.conduct (name text, ends text, poison boolean);

-- By clients.
CREATE TABLE chaos.acknowledged (
    client text, request text, body text, run text, conduct text, due bigint, time bigint, seconds float8
);
CREATE TABLE chaos.refused (client text, request text, code text, reason text, other_body boolean);
CREATE TABLE chaos.cancelling (run text);

-- By workers: what arrived, and what was answered.
CREATE TABLE chaos.call (
    worker text, what text, run text, step text, attempt integer, delivery integer, epoch bigint, key text, time bigint,
    value bigint
);
CREATE INDEX ON chaos.call (run, step, attempt);

-- By watchers, in the order of `line`: a snapshot up to a sequence, an event, or that a watch was refused.
CREATE TABLE chaos.seen (line bigint, watcher text, run text, what text, sequence bigint, ended boolean, time bigint);

-- By the campaign: which replicas died.
CREATE TABLE chaos.death (replica text, time bigint, code integer);

-- By the campaign: standbys that took over and may have lacked the last commits. See database.FailOver.
CREATE TABLE chaos.fail_over (last_commit_time bigint, death_time bigint, takeover_time bigint);

-- What was told of commits that a standby lacked, taken out of the tables above before these are judged: a submission
-- that was acknowledged, a call that arrived, an event that a watcher saw.
CREATE TABLE chaos.lost_with_primary (what text, run text, request text, time bigint);

-- The product's tables, as they were at the end.
CREATE TABLE chaos.run (
    run text PRIMARY KEY, request text, state smallint, epoch bigint, next_sequence bigint, owned boolean, ended boolean
);
CREATE TABLE chaos.event (
    run text, sequence bigint, epoch bigint, kind smallint, step text, attempt integer, time bigint, delivery integer,
    value bigint, until bigint, reason text
);
CREATE INDEX ON chaos.event (run, sequence);
CREATE INDEX ON chaos.event (run, step, kind);

-- By a trigger, in the transaction of the claim: who took over a run from whom, and whether that one was marked as gone.
CREATE TABLE chaos.claim (
    run text, epoch bigint, owner text, previous_owner text, previous_marked boolean, time bigint
);
CREATE INDEX ON chaos.claim (previous_owner);

CREATE FUNCTION chaos.note_claim() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
BEGIN
    INSERT INTO chaos.claim VALUES (
        NEW.run_id::text, NEW.epoch, NEW.owner_replica::text, OLD.owner_replica::text,
        EXISTS (SELECT FROM replicas WHERE replica_id = OLD.owner_replica AND end_time IS NOT NULL),
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    );
    RETURN NULL;
END
$$;

CREATE TRIGGER note_claim AFTER UPDATE ON runs
FOR EACH ROW WHEN (NEW.epoch IS DISTINCT FROM OLD.epoch) EXECUTE FUNCTION chaos.note_claim();
