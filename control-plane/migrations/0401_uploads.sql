-- Certificates that tenants bring: groups of their own, with lineages of their own custody.
ALTER TABLE lineages DROP COLUMN custody;
ALTER TABLE lineages ADD COLUMN custody TEXT NOT NULL DEFAULT 'cell' CHECK (custody IN ('cell', 'uploaded'));

-- A key that is made here belongs to one lineage. One that is brought is in each cell that serves its names, and may come again
-- with its next certificate.
CREATE TABLE credentials_2 (
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
    told               INTEGER NOT NULL DEFAULT 0 -- what its tenant has heard of its end: 0 nothing, 1 soon, 2 very soon, 3 over
);
INSERT INTO credentials_2 SELECT id, lineage_id, issuer, state, names, chain_pem, sealed_key, cell_key_epoch, key_tenant,
    spki_sha256, fingerprint_sha256, not_before, not_after, renew_at, created_at, 'cell', 0 FROM credentials;
DROP TABLE credentials;
ALTER TABLE credentials_2 RENAME TO credentials;
CREATE INDEX credentials_lineage ON credentials (lineage_id, not_after);
CREATE INDEX credentials_renew ON credentials (renew_at) WHERE state = 'live';
CREATE UNIQUE INDEX credentials_made_key ON credentials (spki_sha256) WHERE custody = 'cell';
CREATE INDEX lineages_uploaded ON lineages (group_id) WHERE custody = 'uploaded';
