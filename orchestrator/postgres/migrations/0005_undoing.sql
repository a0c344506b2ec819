-- Runs that take back what their steps did before they end: state 6 (domain.states.RunState.UNDOING).
ALTER TABLE runs
    DROP CONSTRAINT runs_state,
    DROP CONSTRAINT runs_end_time,
    ADD CONSTRAINT runs_state CHECK (state BETWEEN 1 AND 6) NOT VALID,
    ADD CONSTRAINT runs_end_time CHECK ((end_time IS NOT NULL) = (state BETWEEN 3 AND 5)) NOT VALID;
ALTER TABLE runs VALIDATE CONSTRAINT runs_state;
ALTER TABLE runs VALIDATE CONSTRAINT runs_end_time;
