-- Which issuer gets an order.

-- JSON: what the last orders at each CA tell of it (plan/issuers.rs). No row: nothing amiss.
CREATE TABLE issuer_states (
    issuer     TEXT PRIMARY KEY,
    health     TEXT NOT NULL,
    updated_at INTEGER NOT NULL
);

-- JSON by issuer: why and how far it may not issue for the name; '{}': nothing is known against any.
ALTER TABLE name_states ADD COLUMN issuers TEXT NOT NULL DEFAULT '{}';
