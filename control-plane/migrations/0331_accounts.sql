-- An issuer may have several accounts: its own, which it made and orders on, and adopted ones, which say what they have
-- ordered before is replaced.
CREATE TABLE accounts_2 (
    id            INTEGER PRIMARY KEY,
    issuer        TEXT NOT NULL,
    directory     TEXT NOT NULL,
    origin        TEXT NOT NULL CHECK (origin IN ('made', 'adopted')),
    -- 'lost': the CA does not know an adopted one any more.
    state         TEXT NOT NULL CHECK (state IN ('intended', 'registered', 'lost')),
    sealed_key    BLOB NOT NULL,          -- PKCS#8, by the Sealer
    url           TEXT,                   -- not of an intended one
    thumbprint    TEXT,                   -- RFC 7638, base64url; not of an intended one
    created_at    INTEGER NOT NULL,
    registered_at INTEGER
);
INSERT INTO accounts_2 (issuer, directory, origin, state, sealed_key, url, thumbprint, created_at, registered_at)
    SELECT issuer, directory, 'made', state, sealed_key, url, thumbprint, created_at, registered_at FROM accounts;
DROP TABLE accounts;
ALTER TABLE accounts_2 RENAME TO accounts;
CREATE UNIQUE INDEX accounts_made ON accounts (issuer, directory) WHERE origin = 'made';
CREATE UNIQUE INDEX accounts_url ON accounts (issuer, url) WHERE url IS NOT NULL;

-- The adopted account that an order is placed on; NULL: the issuer's own.
ALTER TABLE orders ADD COLUMN account_id INTEGER REFERENCES accounts (id);

-- Secrets of external accounts (RFC 8555 section 7.3.4), written before the CA hears of them.
CREATE TABLE external_accounts (
    issuer        TEXT NOT NULL,
    directory     TEXT NOT NULL,
    key_id        TEXT NOT NULL,
    sealed_secret BLOB NOT NULL,
    created_at    INTEGER NOT NULL,
    PRIMARY KEY (issuer, directory, key_id)
);
