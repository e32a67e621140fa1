-- How origins that ask for client certificates know the edges. Times are unix milliseconds.

-- A tenant's authority, where it wants one; beside it the one that is to follow, or the one before as long as an edge may show
-- what it issued. Their keys never leave the control plane; origins trust their certificates.
CREATE TABLE origin_authorities (
    tenant_id   TEXT NOT NULL REFERENCES tenants (id),
    role        TEXT NOT NULL CHECK (role IN ('present', 'next', 'previous')),
    certificate BLOB NOT NULL,            -- DER
    sealed_key  BLOB NOT NULL,            -- PKCS#8, by the Sealer
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, role)
) WITHOUT ROWID;

-- What the edges of one cell show: made for that cell, its key under the cell's data key and nowhere else. A renewal is a new
-- version of the same resource.
CREATE TABLE origin_identities (
    id               TEXT PRIMARY KEY NOT NULL,
    tenant_id        TEXT NOT NULL REFERENCES tenants (id),
    cell             TEXT NOT NULL REFERENCES cells (id),
    credential_id    TEXT NOT NULL,
    certificate      BLOB NOT NULL,       -- DER
    authority_sha256 BLOB NOT NULL,       -- of the certificate of the authority that issued it
    sealed_key       BLOB NOT NULL,       -- the bytes that go to the edges
    cell_key_epoch   INTEGER NOT NULL,
    spki_sha256      BLOB NOT NULL,
    not_after        INTEGER NOT NULL,
    renew_at         INTEGER NOT NULL,
    UNIQUE (tenant_id, cell)
);
