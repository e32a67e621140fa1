//! Who brings which names: tenants of very different size, most sites an apex and its www, some with many names more.

use portico_api::v1::{DomainSpec, Sharing};
use portico_cert_store::{CellId, DomainId, TenantId};
use portico_control_plane::store::group::OrderableDomain;
use rand::Rng as _;
use rand::rngs::StdRng;
use ulid::Ulid;

use crate::time::{DAY_MS, HOUR_MS};

/// The share of sites that are an apex and www, and no more.
const PLAIN_SITES: f64 = 0.8;
/// Sites of one tenant: at least this many with probability 1/n^ALPHA.
const ALPHA: f64 = 1.1;
/// Of tenants: all names together, each name alone.
const SHARING_ALL: f64 = 0.05;
const SHARING_NONE: f64 = 0.02;
/// Of tenants: served by two cells.
const IN_TWO_CELLS: f64 = 0.1;
/// Of sites: DNS is changed later than the domain is brought, or never.
const DNS_LATER: f64 = 0.03;
const DNS_NEVER: f64 = 0.01;

pub const CELLS: [&str; 2] = ["east", "west"];

/// A name with what its owner does to its DNS.
#[derive(Debug)]
pub struct Brought {
    pub domain: OrderableDomain,
    /// `i64::MAX`: never.
    pub points_from_ms: i64,
    /// Names of one site leave together, as a rule.
    pub site: u64,
}

#[derive(Debug, Default)]
pub struct Population {
    tenants: Vec<Tenant>,
    sites: u64,
}

#[derive(Clone, Debug)]
struct Tenant {
    id: TenantId,
    sharing: Sharing,
    cells: Vec<CellId>,
}

impl Population {
    /// Tenants with `names` names in all, or a few more.
    pub fn bring(&mut self, names: usize, is_settled: bool, now: i64, rng: &mut StdRng) -> Vec<Brought> {
        let mut brought = Vec::with_capacity(names + 64);
        while brought.len() < names {
            let tenant = tenant(rng);
            self.tenants.push(tenant.clone());
            let sites = pareto(rng, ALPHA).min(names / 40 + 1);
            for _ in 0..sites {
                self.site(&tenant, is_settled, now, rng, &mut brought);
                if brought.len() >= names {
                    break;
                }
            }
        }
        brought
    }

    /// One more site: of a tenant that is here already, or of a new one.
    pub fn one_more(&mut self, now: i64, rng: &mut StdRng) -> Vec<Brought> {
        let is_known = !self.tenants.is_empty() && rng.random_bool(0.5);
        let tenant = if is_known {
            self.tenants[rng.random_range(0..self.tenants.len())].clone()
        } else {
            let tenant = tenant(rng);
            self.tenants.push(tenant.clone());
            tenant
        };
        let mut brought = Vec::new();
        self.site(&tenant, false, now, rng, &mut brought);
        brought
    }

    fn site(
        &mut self,
        tenant: &Tenant,
        is_settled: bool,
        now: i64,
        rng: &mut StdRng,
        brought: &mut Vec<Brought>,
    ) {
        self.sites += 1;
        let apex = format!("site{}.com", self.sites);
        let more = if rng.random_bool(PLAIN_SITES) { 0 } else { pareto(rng, 0.9).min(60) };
        let names = [apex.clone(), format!("www.{apex}")]
            .into_iter()
            .chain((0..more).map(|n| format!("s{n}.{apex}")));
        let points_from_ms = match rng.random::<f64>() {
            _ if is_settled => now,
            x if x < DNS_NEVER => i64::MAX,
            x if x < DNS_NEVER + DNS_LATER => now + rng.random_range(HOUR_MS..5 * DAY_MS),
            _ => now,
        };
        for name in names {
            let domain = OrderableDomain {
                id: DomainId::from_ulid(Ulid(rng.random())),
                tenant: tenant.id,
                spec: DomainSpec::new(name.clone()),
                sharing: tenant.sharing,
                tenant_backups: None,
                shared_group: None,
                cells: tenant.cells.clone(),
                challenge_label: String::new(),
                created_at: now,
                name,
            };
            brought.push(Brought { domain, points_from_ms, site: self.sites });
        }
    }
}

fn tenant(rng: &mut StdRng) -> Tenant {
    let sharing = match rng.random::<f64>() {
        x if x < SHARING_ALL => Sharing::Tenant,
        x if x < SHARING_ALL + SHARING_NONE => Sharing::Alone,
        _ => Sharing::RegisteredDomain,
    };
    let cells = CELLS.map(|cell| CellId::parse(cell).expect("letters are a cell's name"));
    let cells = if rng.random_bool(IN_TWO_CELLS) {
        cells.to_vec()
    } else {
        vec![cells[rng.random_range(0..cells.len())].clone()]
    };
    Tenant { id: TenantId::from_ulid(Ulid(rng.random())), sharing, cells }
}

/// A whole number from 1 on, at least n with probability 1/n^alpha.
fn pareto(rng: &mut StdRng, alpha: f64) -> usize {
    let u: f64 = rng.random_range(f64::EPSILON..1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to a million")]
    let size = u.powf(-1.0 / alpha).min(1e6) as usize;
    size
}
