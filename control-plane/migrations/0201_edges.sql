-- Edges, the cells that they share keys in, and what publication must remember.

-- The authority that edges' identities and the distribution listener's certificate come from.
CREATE TABLE internal_ca (
    id          INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    certificate BLOB NOT NULL,            -- DER
    sealed_key  BLOB NOT NULL,            -- PKCS#8, by the Sealer
    created_at  INTEGER NOT NULL
);

-- A set of edges that share keys; the row is made when the name is first used.
CREATE TABLE cells (
    id         TEXT PRIMARY KEY NOT NULL,
    created_at INTEGER NOT NULL
);

-- One data key per cell and epoch. The highest epoch seals; older ones stay to open what they sealed.
CREATE TABLE cell_keys (
    cell       TEXT NOT NULL REFERENCES cells (id),
    epoch      INTEGER NOT NULL,
    sealed     BLOB NOT NULL,             -- 32 bytes, by the Sealer
    created_at INTEGER NOT NULL,
    PRIMARY KEY (cell, epoch)
);

CREATE TABLE join_tokens (
    id            TEXT PRIMARY KEY NOT NULL,
    secret_sha256 BLOB NOT NULL,
    cell          TEXT NOT NULL REFERENCES cells (id),
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    used_at       INTEGER,
    used_by       TEXT
);

CREATE TABLE edges (
    id                 TEXT PRIMARY KEY NOT NULL,
    cell               TEXT NOT NULL REFERENCES cells (id),
    hpke_public_key    BLOB NOT NULL,
    certificate_serial TEXT NOT NULL,
    identity_not_after INTEGER NOT NULL,
    build              TEXT NOT NULL DEFAULT '',
    io_backend         TEXT NOT NULL DEFAULT '',
    listeners          TEXT NOT NULL DEFAULT '[]', -- JSON: addresses with ports, as the edge reported them
    applied_epoch      INTEGER NOT NULL DEFAULT 0,
    applied_sequence   INTEGER NOT NULL DEFAULT 0,
    connections        INTEGER NOT NULL DEFAULT 0,
    names              INTEGER NOT NULL DEFAULT 0,
    joined_at          INTEGER NOT NULL,
    last_seen_at       INTEGER,
    removed_at         INTEGER
);
CREATE INDEX edges_by_cell ON edges (cell) WHERE removed_at IS NULL;

-- What an edge refused and has not taken since. Kind 0 is a whole batch, its id the generation.
CREATE TABLE edge_nacks (
    edge_id TEXT NOT NULL REFERENCES edges (id),
    kind    INTEGER NOT NULL,
    id      TEXT NOT NULL,
    version INTEGER NOT NULL,
    code    TEXT NOT NULL,
    text    TEXT NOT NULL,
    at      INTEGER NOT NULL,
    PRIMARY KEY (edge_id, kind, id)
);

-- Removals that the publisher holds back until an operator signs them off.
CREATE TABLE held_removals (
    kind          INTEGER NOT NULL,
    id            TEXT NOT NULL,
    held_at       INTEGER NOT NULL,
    signed_off_at INTEGER,
    PRIMARY KEY (kind, id)
);

-- When which sequence was reached: by it, tombstones are forgotten after their time.
CREATE TABLE change_marks (
    sequence INTEGER PRIMARY KEY NOT NULL,
    at       INTEGER NOT NULL
);
