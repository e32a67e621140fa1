-- Keys that are replaced before their time, all that an edge or a cell could read among them. Times are Unix milliseconds.
CREATE TABLE rekeys (
    id           TEXT PRIMARY KEY NOT NULL,
    scope        TEXT NOT NULL CHECK (scope IN ('edge', 'cell', 'certificate', 'key')),
    subject      TEXT NOT NULL,           -- edge id, cell, credential id, or SHA-256 of a public key in hex
    cell         TEXT,                    -- of an edge or a cell
    before_epoch INTEGER,                 -- concerned is what is sealed under an older key of that cell
    note         TEXT NOT NULL,           -- the operator's; may be empty
    requested_by TEXT NOT NULL,           -- a token's id, or 'system'
    requested_at INTEGER NOT NULL,
    finished_at  INTEGER,
    behind       TEXT NOT NULL DEFAULT '[]' -- JSON: edges that do not have yet what took its place
);
CREATE INDEX rekeys_open ON rekeys (requested_at) WHERE finished_at IS NULL;

-- The certificates of one.
CREATE TABLE rekey_items (
    rekey_id      TEXT NOT NULL REFERENCES rekeys (id),
    credential_id TEXT NOT NULL,
    replaced_at   INTEGER,                -- another took its place, or none is needed any more
    retired_at    INTEGER,                -- the edges have that one; the key of this one was forgotten
    PRIMARY KEY (rekey_id, credential_id)
);
CREATE INDEX rekey_items_open ON rekey_items (credential_id) WHERE retired_at IS NULL;
