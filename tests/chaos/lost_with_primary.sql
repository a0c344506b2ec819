-- Takes out of a campaign's evidence what was told of commits that died with a server, because the standby that took its
-- place had not received them; and keeps it in `chaos.lost_with_primary`. Only what was told after the last commit that
-- the standby had, and before it took commits itself, can be of that kind: what is missing otherwise is found by
-- `invariants.sql`. Instants of several processes of one machine differ by less than 0.1 s from those of the commits.

CREATE FUNCTION pg_temp.may_be_lost(told_time bigint) RETURNS boolean LANGUAGE sql AS $$
    SELECT EXISTS (
        SELECT FROM chaos.fail_over AS f
        WHERE told_time > f.last_commit_time - 100000 AND told_time < f.takeover_time
    )
$$;

-- Submissions whose run is gone.
WITH gone AS (
    DELETE FROM chaos.acknowledged AS a
    WHERE pg_temp.may_be_lost(a.time) AND NOT EXISTS (SELECT FROM chaos.run AS r WHERE r.run = a.run)
    RETURNING a.run, a.request, a.time
)
INSERT INTO chaos.lost_with_primary SELECT 'submission', run, request, time FROM gone;

-- Calls whose entry is gone, also where the same delivery was journaled again later.
WITH gone AS (
    DELETE FROM chaos.call AS c
    WHERE c.what = 'arrived' AND pg_temp.may_be_lost(c.time) AND NOT EXISTS (
        SELECT FROM chaos.event AS e
        WHERE e.run = c.run AND e.step = c.step AND e.attempt = c.attempt AND e.delivery = c.delivery
            AND e.kind IN (11, 12) AND e.time <= c.time + 100000
    )
    RETURNING c.run, c.time
)
INSERT INTO chaos.lost_with_primary SELECT 'call', run, '', time FROM gone;

-- Events that are gone, also where their number was given again later. What else that watcher was told of that run is
-- not judged: it belongs to two histories.
INSERT INTO chaos.lost_with_primary
SELECT CASE WHEN s.ended THEN 'end' ELSE 'event' END, s.run, s.watcher, s.time FROM chaos.seen AS s
WHERE s.what IN ('event', 'snapshot') AND pg_temp.may_be_lost(s.time) AND NOT EXISTS (
    SELECT FROM chaos.event AS e
    WHERE e.run = s.run AND e.sequence = s.sequence AND e.time <= s.time + 100000
);
DELETE FROM chaos.seen AS s USING chaos.lost_with_primary AS l
WHERE l.run = s.run AND (l.what = 'submission' OR (l.what IN ('end', 'event') AND l.request = s.watcher));
