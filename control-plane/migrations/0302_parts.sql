-- A CA that refuses an order without naming the culprit has its names ordered in two parts, each by itself, until the
-- culprit is alone. 0: no part.
ALTER TABLE name_states ADD COLUMN part INTEGER NOT NULL DEFAULT 0;
