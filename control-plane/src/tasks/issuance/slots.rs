//! Which orders run: at most so many at a time, of one tenant fewer, and never two with a name in common: their challenges would
//! stand in each other's way.

use std::collections::{BTreeMap, HashMap, HashSet};

use portico_cert_store::{OrderId, TenantId};
use tokio::task;

use crate::limits::{ORDERS_IN_FLIGHT_MAX, ORDERS_OF_TENANT_IN_FLIGHT_MAX, PRESSING_ORDERS_IN_FLIGHT_MAX};
use crate::plan::reconcile::{by_urgency, is_pressing};
use crate::store::order::OrderRow;

/// Orders that run now, by their tasks.
#[derive(Debug, Default)]
pub(super) struct Slots(HashMap<task::Id, Taken>);

/// What counts of an order, as long as it runs.
#[derive(Clone, Debug)]
struct Taken {
    order: OrderId,
    tenant: Option<TenantId>,
    names: Vec<String>,
    deadline: Option<i64>,
}

impl Slots {
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn has_room(&self) -> bool {
        self.0.len() < ORDERS_IN_FLIGHT_MAX
    }

    pub(super) fn runs(&self, order: OrderId) -> bool {
        self.0.values().any(|taken| taken.order == order)
    }

    pub(super) fn take(&mut self, task: task::Id, row: &OrderRow) {
        self.0.insert(task, Taken::by(row));
    }

    /// A task is over, whatever became of it.
    pub(super) fn free(&mut self, task: task::Id) {
        self.0.remove(&task);
    }

    /// The orders that start now. The most pressing come first; among equals the next one is of the tenant that has least, by
    /// what runs and by what it has `spent` before.
    pub(super) fn fill(
        &self,
        waiting: Vec<OrderRow>,
        spent: &HashMap<Option<TenantId>, u32>,
        now_ms: i64,
    ) -> Vec<OrderRow> {
        let mut room = Room::of(self.0.values(), now_ms);
        let mut by_tenant: BTreeMap<Option<TenantId>, Vec<OrderRow>> = BTreeMap::new();
        for row in waiting {
            by_tenant.entry(row.tenant).or_default().push(row);
        }
        let mut queues = Vec::with_capacity(by_tenant.len());
        for (tenant, mut rows) in by_tenant {
            rows.sort_by_key(|row| row.wanted_by().unwrap_or(i64::MAX));
            let spent = spent.get(&tenant).copied().unwrap_or(0);
            queues
                .push((usize::try_from(spent).unwrap_or(usize::MAX).saturating_add(room.had(tenant)), rows));
        }
        let (mut starting, mut pressing) = (Vec::new(), Vec::new());
        for row in by_urgency(queues, now_ms, OrderRow::wanted_by) {
            if room.is_for_pressing_alone(&row) {
                pressing.push(row);
            } else if room.take(&row) {
                starting.push(row);
            }
        }
        // What no other order could use.
        starting.extend(pressing.into_iter().filter(|row| room.take(row)));
        starting
    }
}

impl Taken {
    fn by(row: &OrderRow) -> Self {
        Self { order: row.id, tenant: row.tenant, names: row.names.clone(), deadline: row.wanted_by() }
    }
}

/// What is left of the bounds.
struct Room {
    all: usize,
    pressing: usize,
    of_tenant: HashMap<Option<TenantId>, usize>,
    names: HashSet<String>,
    now_ms: i64,
}

impl Room {
    fn of<'a>(running: impl Iterator<Item = &'a Taken>, now_ms: i64) -> Self {
        let mut room = Self { all: 0, pressing: 0, of_tenant: HashMap::new(), names: HashSet::new(), now_ms };
        running.for_each(|taken| room.note(taken));
        room
    }

    fn note(&mut self, taken: &Taken) {
        self.all += 1;
        self.pressing += usize::from(is_pressing(taken.deadline, self.now_ms));
        *self.of_tenant.entry(taken.tenant).or_default() += 1;
        self.names.extend(taken.names.iter().cloned());
    }

    fn had(&self, tenant: Option<TenantId>) -> usize {
        self.of_tenant.get(&tenant).copied().unwrap_or(0)
    }

    fn is_for_pressing_alone(&self, row: &OrderRow) -> bool {
        self.pressing >= PRESSING_ORDERS_IN_FLIGHT_MAX && is_pressing(row.wanted_by(), self.now_ms)
    }

    fn take(&mut self, row: &OrderRow) -> bool {
        let fits = self.all < ORDERS_IN_FLIGHT_MAX
            && self.had(row.tenant) < ORDERS_OF_TENANT_IN_FLIGHT_MAX
            && !row.names.iter().any(|name| self.names.contains(name));
        if fits {
            self.note(&Taken::by(row));
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use portico_cert_store::{CredentialId, LineageId};

    use super::*;
    use crate::store::order::OrderState;

    const NOW: i64 = 1_000_000_000;
    const SOON: Option<i64> = Some(NOW + 60_000);

    fn orders(tenant: TenantId, count: usize, deadline: Option<i64>) -> Vec<OrderRow> {
        let order = |_| {
            let id = OrderId::generate();
            OrderRow {
                id,
                lineage: LineageId::generate(),
                tenant: Some(tenant),
                issuer: "le".to_owned(),
                account: None,
                names: vec![format!("{id}.test")],
                domains: Vec::new(),
                name_set: id.to_string(),
                state: OrderState::Planned,
                credential: CredentialId::generate(),
                key_at_edge: false,
                sealed_key: Vec::new(),
                cell_key_epoch: 1,
                key_tenant: String::new(),
                spki_sha256: Vec::new(),
                csr: Vec::new(),
                renewal: false,
                backup: false,
                replaces: None,
                replaces_accepted: false,
                deadline,
                window_until: None,
                attempts: 0,
                next_at: 0,
                error: None,
            }
        };
        (0..count).map(order).collect()
    }

    /// How many of each tenant's start.
    fn started(running: &[OrderRow], waiting: Vec<OrderRow>, of: &[TenantId]) -> Vec<usize> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut slots = Slots::default();
        for row in running {
            slots.take(runtime.spawn(async {}).id(), row);
        }
        let started = slots.fill(waiting, &HashMap::new(), NOW);
        of.iter().map(|tenant| started.iter().filter(|row| row.tenant == Some(*tenant)).count()).collect()
    }

    #[test]
    fn one_tenants_pressing_orders_leave_slots_to_the_others() {
        let [large, small] = [TenantId::generate(), TenantId::generate()];
        let pressing = orders(large, 100, SOON);
        assert_eq!(started(&[], pressing.clone(), &[large]), [ORDERS_OF_TENANT_IN_FLIGHT_MAX]);
        let running = &pressing[..ORDERS_OF_TENANT_IN_FLIGHT_MAX];
        let waiting = [&pressing[ORDERS_OF_TENANT_IN_FLIGHT_MAX..], &orders(small, 1, None)].concat();
        assert_eq!(started(running, waiting, &[large, small]), [0, 1], "a name that came later runs at once");
    }

    #[test]
    fn pressing_orders_of_many_tenants_leave_slots_to_new_names() {
        let tenants: Vec<TenantId> = (0..50).map(|_| TenantId::generate()).collect();
        let pressing: Vec<OrderRow> = tenants.iter().flat_map(|tenant| orders(*tenant, 4, SOON)).collect();
        let alone: usize = started(&[], pressing.clone(), &tenants).iter().sum();
        assert_eq!(alone, ORDERS_IN_FLIGHT_MAX, "nothing stands empty while nobody else waits");
        let new = TenantId::generate();
        let waiting = [pressing.clone(), orders(new, 100, None)].concat();
        let rest = ORDERS_IN_FLIGHT_MAX - PRESSING_ORDERS_IN_FLIGHT_MAX;
        assert_eq!(started(&[], waiting.clone(), &[new]), [rest]);
        // All were taken by pressing ones before; those that end give their slots to new names first.
        let running = &pressing[..ORDERS_IN_FLIGHT_MAX - 3];
        let of_all = [&tenants[..], &[new]].concat();
        let after = started(running, waiting[ORDERS_IN_FLIGHT_MAX - 3..].to_vec(), &of_all);
        assert_eq!((after.iter().sum::<usize>(), after[tenants.len()]), (3, 3));
    }

    #[test]
    fn what_runs_counts_for_whose_turn_it_is() {
        let [first, second] = [TenantId::generate(), TenantId::generate()];
        let running = orders(first, 20, None);
        let waiting = [orders(first, 50, None), orders(second, 50, None)].concat();
        assert_eq!(started(&running, waiting, &[first, second]), [0, 12]);
    }

    #[test]
    fn a_further_cell_goes_before_new_names_while_its_authorizations_stand() {
        let tenant = TenantId::generate();
        let mut waiting = orders(tenant, 50, None);
        let last = waiting.last_mut().unwrap();
        last.window_until = SOON;
        let id = last.id;
        assert_eq!(Slots::default().fill(waiting, &HashMap::new(), NOW).first().map(|row| row.id), Some(id));
    }

    #[test]
    fn two_orders_with_a_name_in_common_never_run_side_by_side() {
        let tenant = TenantId::generate();
        let mut waiting = orders(tenant, 3, None);
        let first = waiting[0].names.clone();
        waiting[2].names.extend(first);
        let running = orders(tenant, 1, None);
        waiting[1].names = running[0].names.clone();
        assert_eq!(started(&running, waiting, &[tenant]), [1]);
    }
}
