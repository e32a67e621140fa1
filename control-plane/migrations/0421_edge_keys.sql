-- Keys that the one edge of a cell makes and keeps.

-- 'edge': the cell has one edge, which makes its keys and keeps them.
ALTER TABLE cells ADD COLUMN custody TEXT NOT NULL DEFAULT 'cell' CHECK (custody IN ('cell', 'edge'));

-- 1: the key is on the edge alone: sealed_key is empty, and csr and spki_sha256 too, until the edge has made it. cell_key_epoch is
-- that of the cell when it was made: it is replaced with all that an edge could read at that time.
ALTER TABLE orders ADD COLUMN key_at_edge INTEGER NOT NULL DEFAULT 0;
-- The column custody still says 'cell' of such a one: it was issued to us and is renewed here.
ALTER TABLE credentials ADD COLUMN key_at_edge INTEGER NOT NULL DEFAULT 0;

-- Whether another order for the same names is under way.
CREATE INDEX orders_open_set ON orders (name_set) WHERE state NOT IN ('issued', 'failed');
-- Whether a key is in any certificate, brought ones too.
CREATE INDEX credentials_key ON credentials (spki_sha256);
