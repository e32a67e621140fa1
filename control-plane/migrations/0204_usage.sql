-- What each domain served in each hour, summed over all edges. It outlives the domain and the tenant: an invoice may be
-- written later.
CREATE TABLE usage (
    tenant_id      TEXT    NOT NULL,
    hour           INTEGER NOT NULL, -- Unix time in whole hours
    domain_id      TEXT    NOT NULL,
    name           TEXT    NOT NULL,
    requests       INTEGER NOT NULL,
    request_bytes  INTEGER NOT NULL,
    response_bytes INTEGER NOT NULL,
    cached_bytes   INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, hour, domain_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_hour ON usage (hour);

-- The last report of each edge's process that was added, so that none is added twice.
CREATE TABLE usage_series (
    series  BLOB    PRIMARY KEY,
    edge_id TEXT    NOT NULL,
    number  INTEGER NOT NULL,
    at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
