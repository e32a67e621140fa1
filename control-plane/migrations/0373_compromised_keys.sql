-- Keys that others may have, and the revocation of their certificates. Times are Unix milliseconds.

-- 1: reported compromised; its certificates are revoked.
ALTER TABLE rekeys ADD COLUMN compromised INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rekey_items ADD COLUMN revoked_at INTEGER;
ALTER TABLE rekey_items ADD COLUMN revoke_next_at INTEGER NOT NULL DEFAULT 0; -- not asked for before
ALTER TABLE rekey_items ADD COLUMN revoke_attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rekey_items ADD COLUMN revoke_error TEXT;

-- Never accepted again.
CREATE TABLE compromised_keys (
    spki_sha256 BLOB PRIMARY KEY NOT NULL,
    rekey_id    TEXT NOT NULL REFERENCES rekeys (id),
    reported_at INTEGER NOT NULL
);
