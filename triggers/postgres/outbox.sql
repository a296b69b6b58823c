-- An outbox table for the trigger kind postgres-outbox, and the role that reads it.
CREATE TABLE outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key          text,                                -- rows of one key come one after the other; NULL: no order
    event        jsonb NOT NULL,                      -- a CloudEvent in JSON, or the data of one
    created_at   timestamptz NOT NULL DEFAULT now(),
    leased_until timestamptz,                         -- the platform's: a host has it until then
    deliveries   integer NOT NULL DEFAULT 0,          -- the platform's: how often a host took it
    delivered_at timestamptz                          -- the platform's, with the option done: mark
);
CREATE INDEX outbox_waiting ON outbox (id) WHERE delivered_at IS NULL;
CREATE INDEX outbox_keys ON outbox (key, id) WHERE delivered_at IS NULL;

-- Only wakes: without it, new rows are found at the next poll.
CREATE FUNCTION outbox_notify() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NOTIFY outbox; RETURN NULL; END';
CREATE TRIGGER outbox_notify AFTER INSERT ON outbox FOR EACH STATEMENT EXECUTE FUNCTION outbox_notify();

CREATE ROLE sas LOGIN PASSWORD 'sas-pass';            -- choose another
GRANT SELECT, UPDATE, DELETE ON outbox TO sas;
