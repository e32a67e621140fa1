-- A tenant's own error pages (JSON), apart from its spec: that is read with each of its domains, and pages are large.
ALTER TABLE tenants ADD COLUMN error_pages TEXT;
