-- A deleted domain's failures count for whoever claims its name next; they are found by that name.
CREATE INDEX domains_deleted_by_name ON domains (name) WHERE deleted_at IS NOT NULL;
