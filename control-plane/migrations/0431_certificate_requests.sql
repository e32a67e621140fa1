-- Keys that were made here for certificates which tenants order themselves, until those are brought. Times are Unix milliseconds.
CREATE TABLE certificate_requests (
    id          TEXT PRIMARY KEY NOT NULL,
    tenant_id   TEXT NOT NULL REFERENCES tenants (id),
    names       TEXT NOT NULL, -- JSON, sorted
    key_type    TEXT NOT NULL,
    csr_pem     TEXT NOT NULL,
    sealed_key  BLOB NOT NULL, -- by the Sealer: no cell can open it before the certificate is here
    spki_sha256 BLOB NOT NULL,
    created_at  INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
);
CREATE INDEX certificate_requests_of_tenant ON certificate_requests (tenant_id, id);
CREATE INDEX certificate_requests_expiry ON certificate_requests (expires_at);
