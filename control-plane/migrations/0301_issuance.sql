-- Issuance: accounts at CAs, SAN groups, lineages, credentials, orders, and what was learnt about a name on the way.
-- Times are unix milliseconds. Lists are JSON. Sealed columns never hold a key in clear.

-- One ACME account per issuer. The key is stored (sealed) in state 'intended' before the CA hears of it, so that a
-- crash between the CA's answer and our record finds the same account again by its key (RFC 8555 section 7.3.1).
CREATE TABLE accounts (
    issuer        TEXT PRIMARY KEY,
    directory     TEXT NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('intended', 'registered')),
    sealed_key    BLOB NOT NULL,          -- PKCS#8, by the Sealer
    url           TEXT,                   -- set when registered
    thumbprint    TEXT,                   -- RFC 7638, base64url; set when registered
    created_at    INTEGER NOT NULL,
    registered_at INTEGER
);

-- A SAN group: the names that stand on one certificate, with one policy, of one owner.
CREATE TABLE groups (
    id          TEXT PRIMARY KEY,
    tenant_id   TEXT,                     -- NULL: the operator's
    cells       TEXT NOT NULL,            -- JSON, sorted: one lineage for each
    policy      TEXT NOT NULL,            -- JSON: TLS policy class
    alone       INTEGER NOT NULL,         -- 1: a name that failed before, until it has succeeded once
    created_at  INTEGER NOT NULL,
    retired_at  INTEGER                   -- its lineages serve until each of its names is live elsewhere
);

CREATE TABLE group_names (
    group_id  TEXT NOT NULL REFERENCES groups (id),
    name      TEXT NOT NULL,
    domain_id TEXT NOT NULL,
    PRIMARY KEY (group_id, name)
);
CREATE INDEX group_names_domain ON group_names (domain_id);

-- (group, cell): the slot that an edge holds. Renewal swaps its live credential.
CREATE TABLE lineages (
    id              TEXT PRIMARY KEY,
    group_id        TEXT NOT NULL REFERENCES groups (id),
    cell            TEXT NOT NULL,
    custody         TEXT NOT NULL DEFAULT 'cell' CHECK (custody IN ('cell', 'uploaded')),
    live_credential TEXT,
    created_at      INTEGER NOT NULL,
    retired_at      INTEGER,              -- no longer distributed; the row stays, references to it may exist
    UNIQUE (group_id, cell)
);

CREATE TABLE credentials (
    id                 TEXT PRIMARY KEY,
    lineage_id         TEXT NOT NULL REFERENCES lineages (id),
    issuer             TEXT NOT NULL,
    state              TEXT NOT NULL CHECK (state IN ('live', 'replaced', 'refused')),
    names              TEXT NOT NULL,     -- JSON, as in the leaf
    chain_pem          TEXT NOT NULL,     -- leaf first, as the CA gave it
    sealed_key         BLOB NOT NULL,     -- under the cell's data key: the bytes that go to the edges; empty: was forgotten
    cell_key_epoch     INTEGER NOT NULL,
    key_tenant         TEXT NOT NULL,     -- tenant id or 'operator': part of the seal's AAD
    spki_sha256        BLOB NOT NULL,
    fingerprint_sha256 BLOB NOT NULL,
    not_before         INTEGER NOT NULL,
    not_after          INTEGER NOT NULL,
    renew_at           INTEGER NOT NULL,  -- of an uploaded one: when its tenant is asked for the next
    created_at         INTEGER NOT NULL,
    custody            TEXT NOT NULL DEFAULT 'cell' CHECK (custody IN ('cell', 'uploaded')),
    is_rsa             INTEGER NOT NULL DEFAULT 0, -- of an uploaded one: 1: its key is an RSA key
    stored_bytes       INTEGER NOT NULL DEFAULT 0, -- of an uploaded one: chain and sealed key, as they came
    told               INTEGER NOT NULL DEFAULT 0, -- what its tenant has heard of its end: 0 nothing, 1 soon, 2 very soon, 3 over
    tell_at            INTEGER            -- of an uploaded one: when there is more to tell; NULL: nothing more
);
-- A key that is made here belongs to one lineage. One that is brought is in each cell that serves its names, and may come again
-- with its next certificate.
CREATE UNIQUE INDEX credentials_made_key ON credentials (spki_sha256) WHERE custody = 'cell';
CREATE INDEX credentials_lineage ON credentials (lineage_id, not_after);
CREATE INDEX credentials_renew ON credentials (renew_at) WHERE state = 'live';

-- Which names a lineage's live credential covers, written with it: what the projection of a domain reads.
CREATE TABLE lineage_names (
    lineage_id TEXT NOT NULL REFERENCES lineages (id),
    name       TEXT NOT NULL,
    domain_id  TEXT NOT NULL,
    PRIMARY KEY (lineage_id, name)
);
CREATE INDEX lineage_names_domain ON lineage_names (domain_id);

CREATE TABLE orders (
    id             TEXT PRIMARY KEY,
    lineage_id     TEXT NOT NULL REFERENCES lineages (id),
    tenant_id      TEXT,                  -- for fairness; NULL: the operator's
    issuer         TEXT NOT NULL,
    names          TEXT NOT NULL,         -- JSON, sorted
    domains        TEXT NOT NULL,         -- JSON: domain ids, in the order of names
    name_set       TEXT NOT NULL,         -- SHA-256 of the sorted names, hex: orders of one set never overlap
    state          TEXT NOT NULL CHECK (state IN ('planned', 'created', 'challenged', 'ready', 'finalizing', 'issued',
                                                  'failed')),
    url            TEXT,                  -- the CA's, as soon as it is known
    credential_id  TEXT NOT NULL,
    sealed_key     BLOB NOT NULL,         -- under the cell's data key, durable before the CA hears of the order
    cell_key_epoch INTEGER NOT NULL,
    key_tenant     TEXT NOT NULL,
    spki_sha256    BLOB NOT NULL,
    csr            BLOB NOT NULL,
    renewal        INTEGER NOT NULL,      -- 1: the exact set of the lineage's live credential
    attempts       INTEGER NOT NULL DEFAULT 0,
    next_at        INTEGER NOT NULL,      -- nothing is tried before
    error          TEXT,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    issued_at      INTEGER                -- when the CA's certificate arrived
);
CREATE INDEX orders_open ON orders (state, next_at) WHERE state NOT IN ('issued', 'failed');
CREATE UNIQUE INDEX orders_one_open_per_lineage ON orders (lineage_id) WHERE state NOT IN ('issued', 'failed');
CREATE INDEX orders_lineage ON orders (lineage_id, created_at);

-- A log of newOrders, written before each is sent: what the fair queue counts by. Its spending is the ledger's (0311).
CREATE TABLE order_requests (
    id        INTEGER PRIMARY KEY,
    order_id  TEXT NOT NULL,
    tenant_id TEXT,                       -- NULL: the operator's
    renewal   INTEGER NOT NULL,           -- 1: the CA charges nothing for it but the exact set
    at        INTEGER NOT NULL
);
CREATE INDEX order_requests_at ON order_requests (at);
CREATE INDEX order_requests_order ON order_requests (order_id);

-- What is known about getting a certificate for a name: the pre-flight's result and past failures.
CREATE TABLE name_states (
    domain_id     TEXT PRIMARY KEY,
    methods       TEXT NOT NULL,          -- JSON: challenge types that pre-flight found possible; [] until it passed
    ready_at      INTEGER,                -- when pre-flight passed first
    failed_before INTEGER NOT NULL DEFAULT 0, -- a validation failed and none has succeeded since: ordered alone
    -- A CA that refuses an order without naming the culprit has its names ordered in two parts, each by itself, until the
    -- culprit is alone. 0: no part.
    part          INTEGER NOT NULL DEFAULT 0,
    attempts      INTEGER NOT NULL DEFAULT 0,
    next_at       INTEGER NOT NULL DEFAULT 0, -- nothing is tried before
    error         TEXT,
    updated_at    INTEGER NOT NULL
);

-- TXT values that the responder answers below the challenge zone while an order is open.
CREATE TABLE challenge_records (
    label      TEXT NOT NULL,             -- one label below dns.challenge_zone
    value      TEXT NOT NULL,
    order_id   TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (label, value)
);
CREATE INDEX challenge_records_order ON challenge_records (order_id);
