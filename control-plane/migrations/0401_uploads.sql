-- Certificates that tenants bring: groups of their own, with lineages of their own custody.
CREATE INDEX lineages_uploaded ON lineages (group_id) WHERE custody = 'uploaded';
