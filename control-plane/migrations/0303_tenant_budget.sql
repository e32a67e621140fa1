-- Whose newOrder it was: what a tenant's budget and the fair queue count by. NULL: the operator's.
ALTER TABLE order_requests ADD COLUMN tenant_id TEXT;
UPDATE order_requests SET tenant_id = (SELECT tenant_id FROM orders WHERE orders.id = order_requests.order_id);
CREATE INDEX order_requests_tenant ON order_requests (tenant_id, at);
