-- Finds the runs of a week, whatever their namespace. Run ids rise with time, so that a summary of each range of pages
-- is enough: it costs a submission next to nothing, and is made by one pass over the table.

CREATE INDEX runs_by_run_id ON runs USING brin (run_id) WITH (autosummarize = on);
