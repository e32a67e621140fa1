-- What a report of a key, a rekey of a hundred thousand certificates and their revocation look for, without a look at all others.

-- What is left to do of a rekey: what is to be replaced, then what was replaced first.
CREATE INDEX rekey_items_left ON rekey_items (rekey_id, replaced_at) WHERE retired_at IS NULL;
-- What is left to revoke of one, by whose turn it is.
CREATE INDEX rekey_items_unrevoked ON rekey_items (rekey_id, revoke_next_at) WHERE revoked_at IS NULL;
-- The order that made a certificate: the copy of a key there is forgotten with the key.
CREATE INDEX orders_by_credential ON orders (credential_id);
