-- Certificates that tenants bring: groups of their own, with lineages of their own custody.
CREATE INDEX lineages_uploaded ON lineages (group_id) WHERE custody = 'uploaded';
-- Of which of them a tenant is to hear, without a look at any other.
CREATE INDEX credentials_tell ON credentials (tell_at) WHERE custody = 'uploaded' AND state = 'live';
-- How much a tenant's take, without a look at any of them.
CREATE INDEX credentials_uploaded_bytes ON credentials (key_tenant, state, stored_bytes) WHERE custody = 'uploaded';
