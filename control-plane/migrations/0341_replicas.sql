-- Several control planes on one database. Times are Unix milliseconds of the database's clock.

-- Who does which kind of work, until when. The number rises with each term; what a holder writes is bound to it.
CREATE TABLE leases (
    work   TEXT PRIMARY KEY NOT NULL,
    holder TEXT NOT NULL,
    number INTEGER NOT NULL,
    until  INTEGER NOT NULL
);

-- The DNS responders of the control planes, and which state of challenge_records each of them answers.
CREATE TABLE responders (
    replica TEXT PRIMARY KEY NOT NULL,
    address TEXT NOT NULL,                -- of its control plane, for people
    number  INTEGER NOT NULL,
    seen_at INTEGER NOT NULL
);

-- On which control plane each edge hangs.
CREATE TABLE edge_streams (
    edge_id          TEXT PRIMARY KEY NOT NULL REFERENCES edges (id),
    replica          TEXT NOT NULL,
    applied_epoch    INTEGER NOT NULL,
    applied_sequence INTEGER NOT NULL,
    seen_at          INTEGER NOT NULL
);

-- Urgent messages on their way to edges that hang on another control plane than the one that sends them.
CREATE TABLE relayed (
    number  INTEGER PRIMARY KEY NOT NULL,
    replica TEXT NOT NULL,                -- that sends it
    cells   TEXT,                         -- JSON; NULL: all
    message BLOB NOT NULL,                -- as on the wire
    at      INTEGER NOT NULL
);

CREATE TABLE relayed_answers (
    number  INTEGER NOT NULL REFERENCES relayed (number) ON DELETE CASCADE,
    edge_id TEXT NOT NULL,
    ack     BLOB NOT NULL,                -- as on the wire
    PRIMARY KEY (number, edge_id)
);
