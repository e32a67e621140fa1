-- The ledger: one row for each bucket of a CA's limit that something was spent of. Times are unix milliseconds.
CREATE TABLE ledger_buckets (
    ca         TEXT NOT NULL,             -- the directory's URL; '': a tenant's budget
    limit_name TEXT NOT NULL,
    account    TEXT NOT NULL,             -- the issuer's name; '': every account's
    subject    TEXT NOT NULL,             -- registered domain, hash of a set, name, or tenant id; '': the account itself
    arrival    INTEGER NOT NULL,          -- theoretical arrival time: empty from then on
    seen_at    INTEGER NOT NULL,          -- our clock when it was written: time that the clock loses does not pass
    charged_at INTEGER,                   -- when something of ours was last charged
    PRIMARY KEY (ca, limit_name, account, subject)
) WITHOUT ROWID;
CREATE INDEX ledger_buckets_arrival ON ledger_buckets (arrival);

-- What orders under way may still be charged. It counts as spent.
CREATE TABLE ledger_reservations (
    holder      TEXT NOT NULL,            -- the order; or 'account ' and the issuer, while its account is registered
    ca          TEXT NOT NULL,
    limit_name  TEXT NOT NULL,
    account     TEXT NOT NULL,
    subject     TEXT NOT NULL,
    charged     TEXT NOT NULL CHECK (charged IN ('order', 'certificate')), -- by what it becomes spent
    interval_ms INTEGER NOT NULL,
    PRIMARY KEY (holder, ca, limit_name, account, subject)
) WITHOUT ROWID;
CREATE INDEX ledger_reservations_bucket ON ledger_reservations (ca, limit_name, account, subject);

-- Which names a set has.
CREATE INDEX orders_name_set ON orders (name_set);
