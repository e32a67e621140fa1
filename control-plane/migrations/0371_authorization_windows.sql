-- Further cells of a group get their certificates while the CA takes the authorizations of the first again. Unix milliseconds.

-- Until when all authorizations of an order stand, as the CA says in their bodies; NULL: it does not say, or nobody asked.
ALTER TABLE orders ADD COLUMN authorized_until INTEGER;
ALTER TABLE credentials ADD COLUMN authorized_until INTEGER;
-- Of an order that follows one of the same names in another cell: until when that one's authorizations stand.
ALTER TABLE orders ADD COLUMN window_until INTEGER;
