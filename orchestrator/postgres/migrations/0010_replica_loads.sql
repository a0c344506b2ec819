-- How many runs each replica drives, as of its last renewal; NULL where it takes none: it drains, or is of the version
-- before, which does not tell. In no index, so that a renewal stays in its page.

ALTER TABLE replicas ADD COLUMN active_runs integer;

-- The scrubber removes what is kept of runs that are gone.
CREATE POLICY of_engine_to_remove ON schedule_runs FOR DELETE TO baton_engine USING (true);
GRANT DELETE ON schedule_runs TO baton_engine;
