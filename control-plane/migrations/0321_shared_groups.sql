-- The operator's groups of names of several tenants: what is offered to a tenant, and its consent. Times are unix milliseconds.
CREATE TABLE shared_groups (
    tenant_id    TEXT PRIMARY KEY NOT NULL REFERENCES tenants (id),
    group_name   TEXT NOT NULL,
    offered_at   INTEGER NOT NULL,
    consented_at INTEGER,                 -- NULL: nothing of the tenant is shared
    consented_by TEXT,                    -- id of the token
    note         TEXT                     -- how the tenant agreed, where an operator says so
);
CREATE INDEX shared_groups_name ON shared_groups (group_name) WHERE consented_at IS NOT NULL;
