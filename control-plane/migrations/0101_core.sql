-- The control plane's core: tenants, domains with their proofs, and the trail of every write.
-- Ids are TEXT, times INTEGER Unix milliseconds, documents JSON in TEXT, so that PostgreSQL can take the same tables.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);
INSERT INTO meta (key, value) VALUES ('epoch', '1');

-- The single sequencer: one row, whose lock orders the changes as they commit.
CREATE TABLE sequencer (
    id   INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    last INTEGER NOT NULL
);
INSERT INTO sequencer (id, last) VALUES (1, 0);

-- The newest change of every distributed resource; a removed one stays as its tombstone.
CREATE TABLE changes (
    sequence  INTEGER PRIMARY KEY NOT NULL,
    kind      INTEGER NOT NULL,
    id        TEXT NOT NULL,
    version   INTEGER NOT NULL,
    tenant_id TEXT,
    removed   INTEGER NOT NULL,
    UNIQUE (kind, id)
);

-- Data keys of the sealer, each wrapped by the key-encryption key that never is in this file.
CREATE TABLE sealing_keys (
    id         TEXT PRIMARY KEY NOT NULL,
    wrapped    BLOB NOT NULL,
    created_at INTEGER NOT NULL
);

CREATE TABLE tenants (
    id         TEXT PRIMARY KEY NOT NULL,
    name       TEXT NOT NULL UNIQUE,
    spec       TEXT NOT NULL,
    suspension TEXT,
    revision   INTEGER NOT NULL,
    created_at INTEGER NOT NULL
);

CREATE TABLE domains (
    id              TEXT PRIMARY KEY NOT NULL,
    tenant_id       TEXT NOT NULL REFERENCES tenants (id),
    name            TEXT NOT NULL,
    spec            TEXT NOT NULL,
    served          INTEGER NOT NULL DEFAULT 0,
    proof_label     TEXT NOT NULL,
    txt_token       TEXT NOT NULL,
    http_token      TEXT NOT NULL,
    challenge_label TEXT NOT NULL,
    suspension      TEXT,
    acme_thumbprint TEXT,
    check_at        INTEGER,
    check_failures  INTEGER NOT NULL DEFAULT 0,
    revision        INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    deleted_at      INTEGER,
    shows_identity  INTEGER NOT NULL DEFAULT 0 -- 1: a route shows its tenant's client certificate to origins
);
CREATE INDEX domains_showing ON domains (tenant_id) WHERE shows_identity = 1;
CREATE UNIQUE INDEX domains_of_tenant ON domains (tenant_id, name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX domains_served ON domains (name) WHERE served = 1;
CREATE INDEX domains_by_name ON domains (name) WHERE deleted_at IS NULL;
CREATE INDEX domains_by_tenant ON domains (tenant_id, id);
CREATE INDEX domains_by_check ON domains (check_at) WHERE check_at IS NOT NULL;
CREATE INDEX domains_by_challenge ON domains (challenge_label);

-- Every label and token ever handed out. A deleted domain's stay here, so that no later claimant gets one of them.
CREATE TABLE used_labels (
    label      TEXT PRIMARY KEY NOT NULL,
    domain_id  TEXT NOT NULL,
    created_at INTEGER NOT NULL
);

-- Accepted proofs, oldest first; the one that serves a domain has ended_at NULL.
CREATE TABLE proofs (
    id         INTEGER PRIMARY KEY NOT NULL,
    domain_id  TEXT NOT NULL REFERENCES domains (id),
    method     TEXT NOT NULL,
    proved_at  INTEGER NOT NULL,
    checked_at INTEGER NOT NULL,
    evidence   TEXT NOT NULL,
    actor      TEXT NOT NULL,
    ended_at   INTEGER,
    ended_by   TEXT
);
CREATE UNIQUE INDEX proofs_standing ON proofs (domain_id) WHERE ended_at IS NULL;
CREATE INDEX proofs_by_domain ON proofs (domain_id);

CREATE TABLE conditions (
    domain_id     TEXT NOT NULL REFERENCES domains (id),
    type          TEXT NOT NULL,
    status        TEXT NOT NULL,
    reason        TEXT NOT NULL,
    message       TEXT NOT NULL,
    since         INTEGER NOT NULL,
    next_check_at INTEGER,
    PRIMARY KEY (domain_id, type)
);

CREATE TABLE tokens (
    id            TEXT PRIMARY KEY NOT NULL,
    secret_sha256 BLOB NOT NULL,
    tenant_id     TEXT REFERENCES tenants (id),
    label         TEXT NOT NULL,
    created_at    INTEGER NOT NULL,
    revoked_at    INTEGER
);

-- Each row's hash covers the row before it, so that a row removed or altered afterwards shows.
CREATE TABLE audit (
    sequence   INTEGER PRIMARY KEY NOT NULL,
    at         INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    request_id TEXT NOT NULL,
    action     TEXT NOT NULL,
    subject    TEXT NOT NULL,
    before     TEXT NOT NULL,
    after      TEXT NOT NULL,
    hash       BLOB NOT NULL
);

CREATE TABLE events (
    sequence  INTEGER PRIMARY KEY NOT NULL,
    at        INTEGER NOT NULL,
    kind      TEXT NOT NULL,
    tenant_id TEXT,
    subject   TEXT NOT NULL,
    text      TEXT NOT NULL
);
CREATE INDEX events_by_tenant ON events (tenant_id, sequence);

CREATE TABLE idempotency (
    actor       TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    status      INTEGER,
    etag        TEXT,
    body        BLOB,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (actor, key)
);
CREATE INDEX idempotency_by_age ON idempotency (created_at);
