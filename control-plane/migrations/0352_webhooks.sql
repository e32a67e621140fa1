-- Where events are sent. There is no queue: an endpoint has a place in the events, and what is after it is still to be sent.
CREATE TABLE webhooks (
    id              TEXT PRIMARY KEY NOT NULL,
    tenant_id       TEXT REFERENCES tenants (id), -- NULL: the operators', who hear of everything
    url             TEXT NOT NULL,
    kinds           TEXT NOT NULL,                -- JSON; '[]': all
    label           TEXT NOT NULL,
    sealed_secret   BLOB NOT NULL,                -- by the Sealer
    previous_secret BLOB,                         -- the one before, as long as both sign
    previous_until  INTEGER,
    delivered_to    INTEGER NOT NULL,             -- sequence of the last event that was taken, or is not for it
    disabled        TEXT,                         -- why nothing is sent; NULL: it is
    failures        INTEGER NOT NULL DEFAULT 0,   -- in a row
    failing_since   INTEGER,
    next_at         INTEGER NOT NULL,             -- nothing is tried before
    last_error      TEXT,
    taken_at        INTEGER,                      -- when it took one last
    created_at      INTEGER NOT NULL
);
CREATE INDEX webhooks_by_tenant ON webhooks (tenant_id);

-- The last tries of each endpoint.
CREATE TABLE webhook_tries (
    number     INTEGER PRIMARY KEY NOT NULL,
    webhook_id TEXT NOT NULL REFERENCES webhooks (id),
    sequence   INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    at         INTEGER NOT NULL,
    status     INTEGER, -- of the HTTP answer, if there was one
    error      TEXT,    -- NULL: it was taken
    took_ms    INTEGER NOT NULL
);
CREATE INDEX webhook_tries_by_webhook ON webhook_tries (webhook_id, number);
