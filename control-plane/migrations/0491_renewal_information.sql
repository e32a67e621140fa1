-- Renewal information (RFC 9773): what the CA suggests for each certificate, and which one an order replaces.

-- URL of the account that ordered it: only that account may say that an order replaces it.
ALTER TABLE credentials ADD COLUMN account TEXT;
-- The suggested window; NULL: none that can be followed, and renew_at is by share of the lifetime.
ALTER TABLE credentials ADD COLUMN window_start INTEGER;
ALTER TABLE credentials ADD COLUMN window_end INTEGER;
ALTER TABLE credentials ADD COLUMN explanation_url TEXT;
-- Why there is no window, or why the last look at it failed; for people.
ALTER TABLE credentials ADD COLUMN window_note TEXT;
ALTER TABLE credentials ADD COLUMN window_asked_at INTEGER;               -- last answer of the CA
ALTER TABLE credentials ADD COLUMN window_next_at INTEGER NOT NULL DEFAULT 0; -- when to ask again
ALTER TABLE credentials ADD COLUMN window_failures INTEGER NOT NULL DEFAULT 0; -- in a row
ALTER TABLE credentials ADD COLUMN late_told_at INTEGER;                  -- when it was told that its renewal is late
CREATE INDEX credentials_window_next ON credentials (window_next_at) WHERE state = 'live';

-- The certificate that the order replaces, and how the CA calls it; NULL: none, or the CA would not have it.
ALTER TABLE orders ADD COLUMN replaces_credential TEXT;
ALTER TABLE orders ADD COLUMN replaces TEXT;
-- 1: the CA took the order as the replacement.
ALTER TABLE orders ADD COLUMN replaces_accepted INTEGER NOT NULL DEFAULT 0;
-- Of an order that keeps names alive: when the first of them is without a good certificate.
ALTER TABLE orders ADD COLUMN deadline INTEGER;
-- Each certificate is replaced once; an order that failed has not replaced it.
CREATE UNIQUE INDEX orders_replace_once ON orders (replaces_credential)
    WHERE replaces_credential IS NOT NULL AND state <> 'failed';
