-- Whether served names still lead here: what the watch over DNS has seen of each (plan/presence.rs).
CREATE TABLE presences (
    domain_id    TEXT PRIMARY KEY NOT NULL REFERENCES domains (id),
    state        TEXT NOT NULL CHECK (state IN ('never', 'here', 'away', 'left', 'retired')),
    since        INTEGER NOT NULL,           -- of 'away', 'left', 'retired': the first of the looks that saw it elsewhere
    looks        INTEGER NOT NULL DEFAULT 0, -- that saw it elsewhere, in a row
    left_at      INTEGER,
    retired_at   INTEGER,
    swept        INTEGER NOT NULL DEFAULT 0, -- of 'retired', 1: keys of its earlier certificates are doomed, too
    next_look_at INTEGER NOT NULL
);
CREATE INDEX presences_next_look ON presences (next_look_at);
CREATE INDEX presences_gone ON presences (retired_at) WHERE retired_at IS NOT NULL;
INSERT INTO presences (domain_id, state, since, next_look_at)
    SELECT id, 'never', created_at, 0 FROM domains WHERE served = 1 AND deleted_at IS NULL;

-- Keys of certificates that hold a retired name: each is destroyed as soon as nothing refers to it.
CREATE TABLE doomed_keys (
    credential_id TEXT NOT NULL,
    domain_id     TEXT NOT NULL,
    since         INTEGER NOT NULL,
    PRIMARY KEY (credential_id, domain_id)
);
CREATE INDEX doomed_keys_domain ON doomed_keys (domain_id);
