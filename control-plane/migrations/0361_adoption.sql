-- Certificates that were taken over from other ACME clients with their keys, and are renewed here.
ALTER TABLE credentials ADD COLUMN adopted INTEGER NOT NULL DEFAULT 0; -- 1: brought with its key, and renewed as one of ours
-- A key that is made here belongs to one lineage. An adopted one is in each cell that serves its names, may have stood in several
-- certificates, and may come again.
DROP INDEX credentials_made_key;
CREATE UNIQUE INDEX credentials_made_key ON credentials (spki_sha256) WHERE custody = 'cell' AND adopted = 0;
