-- Finds what people were asked: the events APPROVAL_REQUESTED, in the order in which they are listed. No journal holds any
-- yet, so that the index is made by one pass over each partition, and costs nothing for runs that ask nobody.

CREATE INDEX events_approval_requested ON events (namespace, run_id, sequence) WHERE kind = 33;
