-- Backup certificates: of another issuer, with another key, on the edges beside what serves.

-- The group whose names these certificates stand by for; NULL: it is none of backups.
ALTER TABLE groups ADD COLUMN backup_of TEXT;
CREATE UNIQUE INDEX groups_backup ON groups (backup_of) WHERE backup_of IS NOT NULL AND retired_at IS NULL;

-- '': no backup. 'staged': on the edges, and no name refers to it. 'shown': the operator has switched to it.
ALTER TABLE lineages ADD COLUMN backup TEXT NOT NULL DEFAULT '' CHECK (backup IN ('', 'staged', 'shown'));
CREATE INDEX lineages_backup ON lineages (group_id) WHERE backup <> '';

ALTER TABLE orders ADD COLUMN backup INTEGER NOT NULL DEFAULT 0; -- 1: for a backup

-- Names that an issuer could not validate or would not have, for a backup: left out until then. They fail in nothing else.
CREATE TABLE backup_failures (
    domain_id TEXT NOT NULL,
    issuer    TEXT NOT NULL,
    attempts  INTEGER NOT NULL,
    until     INTEGER NOT NULL,
    error     TEXT NOT NULL,
    PRIMARY KEY (domain_id, issuer)
);
