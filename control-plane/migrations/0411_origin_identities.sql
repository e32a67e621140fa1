-- How origins that ask for client certificates know the edges. Times are unix milliseconds.

-- One authority for each tenant that wants one. Its key never leaves the control plane; origins trust its certificate.
CREATE TABLE origin_authorities (
    tenant_id   TEXT PRIMARY KEY NOT NULL REFERENCES tenants (id),
    certificate BLOB NOT NULL,            -- DER
    sealed_key  BLOB NOT NULL,            -- PKCS#8, by the Sealer
    created_at  INTEGER NOT NULL
);

-- What the edges of one cell show: made for that cell, its key under the cell's data key and nowhere else. A renewal is a new
-- version of the same resource.
CREATE TABLE origin_identities (
    id             TEXT PRIMARY KEY NOT NULL,
    tenant_id      TEXT NOT NULL REFERENCES origin_authorities (tenant_id),
    cell           TEXT NOT NULL REFERENCES cells (id),
    credential_id  TEXT NOT NULL,
    certificate    BLOB NOT NULL,         -- DER
    sealed_key     BLOB NOT NULL,         -- the bytes that go to the edges
    cell_key_epoch INTEGER NOT NULL,
    spki_sha256    BLOB NOT NULL,
    not_after      INTEGER NOT NULL,
    renew_at       INTEGER NOT NULL,
    UNIQUE (tenant_id, cell)
);
