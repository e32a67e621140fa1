-- The default certificate is that of a domain (meta: default_domain), in every cell alike.
ALTER TABLE cells DROP COLUMN default_lineage;
