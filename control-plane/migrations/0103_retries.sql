-- When somebody asked that a name be tried again at once, the last hour's: what bounds the next such call.
CREATE TABLE retries (
    domain_id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    asked_at  INTEGER NOT NULL,
    PRIMARY KEY (domain_id, asked_at)
);
CREATE INDEX retries_by_tenant ON retries (tenant_id, asked_at);
