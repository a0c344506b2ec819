-- How an endpoint is reached: by a work stream where it serves one, and through the replica that its worker attached to
-- where it takes no connections itself.

ALTER TABLE endpoints
    ADD COLUMN work_stream boolean NOT NULL DEFAULT false,
    -- The replica process that holds the worker's stream, as told in BatonOpening.replica_id, and where it listens.
    ADD COLUMN attached_replica uuid,
    ADD COLUMN attached_address text NOT NULL DEFAULT '',
    ADD CONSTRAINT endpoints_attached CHECK ((attached_replica IS NULL) = (attached_address = ''));
