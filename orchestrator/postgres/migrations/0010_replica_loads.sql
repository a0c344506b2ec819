-- How many runs each replica drives, as of its last renewal; NULL where it takes none: it drains, or is of the version
-- before, which does not tell. In no index, so that a renewal stays in its page.

ALTER TABLE replicas ADD COLUMN active_runs integer;
