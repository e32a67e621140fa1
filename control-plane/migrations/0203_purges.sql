-- What edges are to forget, in the order in which they are told. The newest rows stay, so that an edge that was away is told
-- what it has missed, and numbers are never given out again.
CREATE TABLE purges (
    number    INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    at        INTEGER NOT NULL,
    tenant_id TEXT NOT NULL,
    request   TEXT NOT NULL
);
