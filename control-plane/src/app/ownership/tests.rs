//! Claims, proofs, transfers and deletions against a model that shares nothing with them (promise P6, THREATS F1 to F4).
//!
//! The real verbs run on a real store; of the network there is a table of what DNS and web servers say, which their holders
//! change. The model knows tenants, names and texts, and is written from the promise alone: a name is served for whoever's
//! proof of control was accepted last. After each operation both are compared, after a history everything.
//!
//! `PORTICO_MODEL_OPERATIONS` says how many operations are tried (4,000 else; a million take a quarter of an hour),
//! `PORTICO_MODEL_SEED` goes on from a seed that a failure has printed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use portico_api::distribution::ResourceKind;
use portico_api::v1::{DomainSpec, TenantSpec};
use portico_cert_store::{NamePattern, TenantId};
use proptest::prelude::*;

use super::*;
use crate::app::claim::{self, Claimed, PENDING_CLAIMS_MAX, Quota};
use crate::clock::Clock;
use crate::config::Config;
use crate::http::call::Call;
use crate::http::fault::{Answered, Fault};
use crate::http::write::{Begun, Write};
use crate::store::domain::DomainFilter;
use crate::store::{change, tenant};
use crate::{FleetLink, Parts};

const OURS: &str = "192.0.2.1";
const CNAME_ZONE: &str = "edge.provider.test";
const TENANTS: usize = 3;
/// Names of one history, below a base of its own, each with spellings that are the same name.
const NAMES: [&[&str]; 7] = [
    &["@", "@.", "UPPER@"],
    &["a.@", "A.@", "a.@."],
    &["b.@", "B.UPPER@"],
    &["*.@", "*.@.", "*.UPPER@"],
    &["x.b.@", "X.b.@"],
    &["*.b.@", "*.B.@"],
    &["b\u{fc}cher.@", "xn--bcher-kva.@", "B\u{dc}CHER.@"],
];
/// Names that only fill a tenant's claims.
const FILLERS: usize = 200;

fn name_of(base: &str, host: usize) -> NamePattern {
    spelt(base, host, 0).parse().unwrap()
}

fn spelt(base: &str, host: usize, spelling: usize) -> String {
    let Some(spellings) = NAMES.get(host) else { return format!("f{host}.{base}") };
    let text = spellings[spelling % spellings.len()];
    text.replace("UPPER@", &base.to_ascii_uppercase()).replace('@', base)
}

/// What the world says about one host; that below a wildcard is of its base.
#[derive(Clone, Debug, Default)]
struct World {
    /// At `_portico.<base of the name>`.
    txt: BTreeMap<String, BTreeSet<String>>,
    cname: BTreeMap<String, String>,
    /// Hosts that point to us; all others point to their holders' servers.
    here: BTreeSet<String>,
    files: BTreeMap<(String, String), String>,
    /// Resolvers do not answer.
    is_dark: bool,
}

impl World {
    fn answers(&self, row: &DomainRow) -> Answers {
        let base = row.name.base().to_string();
        if self.is_dark {
            let unknown = || "SERVFAIL".to_owned();
            return Answers {
                txt: Found::Unknown(unknown()),
                cname: Found::Unknown(unknown()),
                addresses: Found::Unknown(unknown()),
            };
        }
        let found =
            |texts: Vec<String>| if texts.is_empty() { Found::Nothing } else { Found::Records(texts) };
        let cname = self.cname.get(&base).filter(|_| !row.name.is_wildcard());
        let address = if self.here.contains(&base) { OURS } else { "198.51.100.7" };
        Answers {
            txt: found(self.txt.get(&base).into_iter().flatten().cloned().collect()),
            cname: found(cname.into_iter().cloned().collect()),
            addresses: Found::Records(vec![address.parse().unwrap()]),
        }
    }

    /// As [`look`] sees it.
    fn look(&self, app: &App, row: &DomainRow) -> Seen {
        let answers = self.answers(row);
        let mut seen = Seen::in_dns(app, row, &answers, app.parts.clock.now_ms());
        if seen.proof.is_none()
            && file_may_prove(row, answers.addresses.records(), |at| fetch::is_own(app, at))
        {
            let at = (row.name.base().to_string(), proof::http_path(&row.labels.http_token));
            let body = self.files.get(&at).map(String::as_bytes).unwrap_or_default();
            seen.proof = fetch::proves(row, body).then(|| (ProofMethod::Http, "a file".to_owned()));
        }
        seen
    }
}

// ---- the model ----

/// A claim as the model has it: texts as the tenant was told them.
#[derive(Clone, Debug)]
struct ModelClaim {
    domain: DomainId,
    texts: Labels,
    made_at: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Txt,
    Cname,
    File,
    Word,
}

#[derive(Debug, Default)]
struct Model {
    claims: BTreeMap<(usize, usize), ModelClaim>,
    /// Whose proof of a name was accepted last, and of which kind.
    owners: BTreeMap<usize, (usize, Way)>,
    /// Every text that was ever handed out.
    texts: BTreeSet<String>,
}

/// A look that has not been acted upon yet.
#[derive(Clone, Debug)]
struct Pending {
    who: (usize, usize),
    seen: Seen,
    way: Option<Way>,
    texts: Labels,
}

impl Model {
    fn pending_of(&self, who: usize) -> usize {
        let is_pending = |(tenant, host): &&(usize, usize)| {
            *tenant == who && self.owners.get(host).is_none_or(|(owner, _)| *owner != who)
        };
        self.claims.keys().filter(is_pending).count()
    }

    fn new_texts(&mut self, texts: &Labels) {
        for text in [&texts.proof_label, &texts.txt_token, &texts.http_token, &texts.challenge_label] {
            assert!(self.texts.insert(text.clone()), "a text was handed out twice");
        }
    }

    /// What a look proves for a claim; from the promise, not from the code.
    fn way(&self, world: &World, base: &str, who: (usize, usize)) -> Option<Way> {
        let claim = self.claims.get(&who)?;
        if world.is_dark {
            return None;
        }
        let name = name_of(base, who.1);
        let at = name.base().to_string();
        if world.txt.get(&at).is_some_and(|texts| texts.contains(&claim.texts.txt_token)) {
            return Some(Way::Txt);
        }
        if name.is_wildcard() {
            return None;
        }
        let target = format!("{}.{CNAME_ZONE}", claim.texts.proof_label);
        if world.cname.get(&at) == Some(&target) {
            return Some(Way::Cname);
        }
        let serves = self.owners.get(&who.1).is_some_and(|(owner, _)| *owner == who.0);
        let path = format!("/.well-known/portico/{}", claim.texts.http_token);
        let has_file = world.files.contains_key(&(at.clone(), path));
        (!serves && !world.here.contains(&at) && has_file).then_some(Way::File)
    }

    /// A proof of `who` is put before the rule. Answers whose claim lost the name by it.
    fn prove(&mut self, who: (usize, usize), way: Way) -> Option<(usize, usize)> {
        match self.owners.get(&who.1).copied() {
            None => {
                self.owners.insert(who.1, (who.0, way));
                None
            }
            Some((owner, before)) if owner == who.0 => {
                if before == Way::Word && way != Way::Word {
                    self.owners.insert(who.1, (owner, way));
                }
                None
            }
            Some((owner, _)) if matches!(way, Way::Txt | Way::Cname) => {
                self.owners.insert(who.1, (who.0, way));
                Some((owner, who.1))
            }
            Some(_) => None,
        }
    }
}

// ---- one history ----

#[derive(Clone, Debug)]
enum Operation {
    Claim {
        who: (usize, usize),
        spelling: usize,
    },
    /// The holder of a name does as the tenant was told.
    Publish {
        who: (usize, usize),
        way: Way,
    },
    Withdraw {
        host: usize,
        way: Way,
    },
    Point {
        host: usize,
        here: bool,
    },
    Check {
        who: (usize, usize),
    },
    Look {
        who: (usize, usize),
    },
    ActOnLook {
        index: usize,
    },
    Attest {
        who: (usize, usize),
    },
    Delete {
        who: (usize, usize),
    },
    Dark {
        is_dark: bool,
    },
    /// The reconciler looks at all that is due.
    Round,
    Advance {
        hours: u64,
    },
}

/// The one source of chance; a history is the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(most).unwrap()).unwrap()
    }

    fn who(&mut self) -> (usize, usize) {
        (self.below(TENANTS), self.below(NAMES.len()))
    }

    fn way(&mut self) -> Way {
        [Way::Txt, Way::Cname, Way::File][self.below(3)]
    }

    fn operation(&mut self) -> Operation {
        match self.below(100) {
            0..14 => Operation::Claim { who: self.who(), spelling: self.below(3) },
            // A tenant that claims whatever it can.
            14..22 => Operation::Claim { who: (0, NAMES.len() + self.below(FILLERS)), spelling: 0 },
            22..38 => Operation::Publish { who: self.who(), way: self.way() },
            38..44 => Operation::Withdraw { host: self.below(NAMES.len()), way: self.way() },
            44..48 => Operation::Point { host: self.below(NAMES.len()), here: self.below(2) == 0 },
            48..74 => Operation::Check { who: self.who() },
            74..79 => Operation::Look { who: self.who() },
            79..84 => Operation::ActOnLook { index: self.below(8) },
            84..88 => Operation::Attest { who: self.who() },
            88..94 => Operation::Delete { who: self.who() },
            94..96 => Operation::Dark { is_dark: self.below(3) == 0 },
            96..97 => Operation::Round,
            _ => Operation::Advance { hours: [1, 20, 200][self.below(3)] },
        }
    }
}

/// The real thing.
struct Real {
    app: App,
    tenants: Vec<TenantId>,
    clock: Clock,
    _folder: tempfile::TempDir,
}

impl Real {
    async fn start() -> Self {
        // In memory where there is such a folder: what is tried here is not the disk.
        let memory = Path::new("/dev/shm");
        let folder =
            if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let (data, kek) = (folder.path().join("data"), folder.path().join("kek"));
        crate::sealer::KeyEncryptionKey::create(&kek, &data).unwrap();
        let text = format!(
            "data = {data:?}\napi = \"127.0.0.1:0\"\ndistribution = \"127.0.0.1:0\"\nkey_encryption_key_file = {kek:?}\n\
             [dns]\nresolvers = [\"127.0.0.1:9\"]\ncname_zone = \"{CNAME_ZONE}\"\n[fleet]\npublic_addresses = [\"{OURS}\"]\n"
        );
        let config = Config::parse(&text, Path::new("cp.toml")).unwrap();
        let clock = Clock::default();
        let parts = Parts::open(config, clock.clone()).await.unwrap();
        let app = App::new(&parts, FleetLink::absent()).unwrap();
        let mut tx = parts.store.begin().await.unwrap();
        let mut tenants = Vec::new();
        for n in 0..TENANTS {
            let spec: TenantSpec = serde_json::from_value(
                serde_json::json!({ "name": format!("t{n}"), "domains_max": 1_000_000 }),
            )
            .unwrap();
            let id = TenantId::generate();
            let row =
                tenant::TenantRow { id, spec, suspension: None, revision: 1, created_at: clock.now_ms() };
            tenant::insert(&mut tx, &row).await.unwrap();
            tenants.push(id);
        }
        tx.commit().await.unwrap();
        Self { app, tenants, clock, _folder: folder }
    }

    async fn write(&self) -> Box<Write> {
        match Write::begin(&self.app, &Call::of_operator(), b"").await.unwrap() {
            Begun::Fresh(write) => write,
            Begun::Replay(_) => unreachable!("there is no key"),
        }
    }

    async fn claim(&self, tenant: usize, hostname: &str) -> Answered<Claimed> {
        let mut write = self.write().await;
        let tenant = tenant::find(&mut write.tx, self.tenants[tenant]).await?.unwrap();
        // As with the tenant's own token.
        let mut quota = Quota::count(&mut write, &tenant, false).await?;
        let claimed =
            claim::claim(&self.app, &mut write, &tenant, DomainSpec::new(hostname), &mut quota).await?;
        write.commit().await?;
        Ok(claimed)
    }

    async fn row(&self, id: DomainId) -> DomainRow {
        domain::find(&mut self.app.parts.store.read().await.unwrap(), id).await.unwrap().unwrap()
    }

    async fn act(&self, seen: &Seen) -> Checked {
        let mut tx = self.app.parts.store.begin().await.unwrap();
        let checked = apply(&mut tx, seen, "system", self.clock.now_ms()).await.unwrap();
        tx.commit().await.unwrap();
        checked
    }

    async fn attest(&self, row: DomainRow) -> Result<(), Refusal> {
        let now = self.clock.now_ms();
        let mut tx = self.app.parts.store.begin().await.unwrap();
        let word = ProofRow {
            domain_id: row.id,
            method: ProofMethod::Attestation,
            proved_at: now,
            checked_at: now,
            evidence: "the operator's word".to_owned(),
            actor: "operator".to_owned(),
        };
        let done = accept(&mut tx, row, word, now).await.unwrap();
        tx.commit().await.unwrap();
        done
    }
}

struct History<'a> {
    real: &'a Real,
    base: String,
    world: World,
    model: Model,
    looks: Vec<Pending>,
}

impl<'a> History<'a> {
    fn new(real: &'a Real, base: String) -> Self {
        Self { real, base, world: World::default(), model: Model::default(), looks: Vec::new() }
    }

    async fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Claim { who, spelling } => self.claim(*who, *spelling).await,
            Operation::Publish { who, way } => self.publish(*who, *way),
            Operation::Withdraw { host, way } => self.withdraw(*host, *way),
            Operation::Point { host, here } => {
                let at = name_of(&self.base, *host).base().to_string();
                if *here {
                    self.world.here.insert(at)
                } else {
                    self.world.here.remove(&at)
                };
            }
            Operation::Check { who } => {
                if let Some(look) = self.look(*who).await {
                    self.act(&look).await;
                }
            }
            Operation::Look { who } => {
                if let Some(look) = self.look(*who).await {
                    self.looks.push(look);
                }
            }
            Operation::ActOnLook { index } => {
                if *index < self.looks.len() {
                    let look = self.looks.swap_remove(*index);
                    self.act(&look).await;
                }
            }
            Operation::Attest { who } => self.attest(*who).await,
            Operation::Delete { who } => self.delete(*who).await,
            Operation::Dark { is_dark } => self.world.is_dark = *is_dark,
            Operation::Round => self.round().await,
            Operation::Advance { hours } => self.real.clock.advance(Duration::from_secs(hours * 3600)),
        }
    }

    async fn claim(&mut self, who: (usize, usize), spelling: usize) {
        let full = self.model.pending_of(who.0) >= usize::try_from(PENDING_CLAIMS_MAX).unwrap();
        let claimed = self.real.claim(who.0, &spelt(&self.base, who.1, spelling)).await;
        let known = self.model.claims.get(&who).map(|claim| claim.domain);
        match (known, claimed) {
            // However it is spelt, it is the same wish.
            (Some(known), Ok(Claimed::Same(row))) => assert_eq!(known, row.id),
            (None, Ok(Claimed::New(row))) => {
                assert!(!full, "more claims than there may be");
                assert!(!row.served, "a claim alone is served");
                self.model.new_texts(&row.labels);
                let claim =
                    ModelClaim { domain: row.id, texts: row.labels, made_at: self.real.clock.now_ms() };
                self.model.claims.insert(who, claim);
            }
            (None, Err(Fault { code, .. })) => {
                assert_eq!((code, full), ("pending_claims_max_reached", true));
            }
            (known, claimed) => panic!("{known:?} {claimed:?}"),
        }
    }

    fn publish(&mut self, who: (usize, usize), way: Way) {
        let Some(claim) = self.model.claims.get(&who) else { return };
        let name = name_of(&self.base, who.1);
        let at = name.base().to_string();
        let texts = &claim.texts;
        match way {
            Way::Txt => {
                self.world.txt.entry(at).or_default().insert(texts.txt_token.clone());
            }
            Way::Cname => {
                self.world.cname.insert(at.clone(), format!("{}.{CNAME_ZONE}", texts.proof_label));
                self.world.here.insert(at);
            }
            Way::File => {
                let content = proof::http_content(&texts.http_token, self.real.tenants[who.0], &name);
                self.world.files.insert((at, proof::http_path(&texts.http_token)), content);
            }
            Way::Word => {}
        }
    }

    fn withdraw(&mut self, host: usize, way: Way) {
        let at = name_of(&self.base, host).base().to_string();
        match way {
            Way::Txt => drop(self.world.txt.remove(&at)),
            Way::Cname => drop(self.world.cname.remove(&at)),
            Way::File => self.world.files.retain(|(of, _), _| *of != at),
            Way::Word => {}
        }
    }

    async fn look(&self, who: (usize, usize)) -> Option<Pending> {
        let claim = self.model.claims.get(&who)?;
        let row = self.real.row(claim.domain).await;
        assert_eq!(row.labels, claim.texts, "the tenant was told other texts");
        let seen = self.world.look(&self.real.app, &row);
        let way = self.model.way(&self.world, &self.base, who);
        let of = |method| match method {
            ProofMethod::Txt => Way::Txt,
            ProofMethod::Cname => Way::Cname,
            ProofMethod::Http => Way::File,
            ProofMethod::Attestation => Way::Word,
        };
        assert_eq!(seen.proof.as_ref().map(|(method, _)| of(*method)), way, "{who:?}");
        Some(Pending { who, seen, way, texts: claim.texts.clone() })
    }

    async fn act(&mut self, look: &Pending) {
        let checked = self.real.act(&look.seen).await;
        let stands = self.model.claims.get(&look.who).is_some_and(|claim| claim.texts == look.texts);
        if !stands {
            assert_eq!(checked, Checked::Stale, "a look at texts that hold no longer changed something");
            return;
        }
        let Some(way) = look.way else { return };
        let loser = self.model.prove(look.who, way);
        self.note_loser(loser).await;
    }

    /// Whoever loses a name is told other texts, and the old ones prove nothing any more.
    async fn note_loser(&mut self, loser: Option<(usize, usize)>) {
        let Some(who) = loser else { return };
        let domain = self.model.claims[&who].domain;
        let row = self.real.row(domain).await;
        self.model.new_texts(&row.labels);
        self.model.claims.get_mut(&who).unwrap().texts = row.labels;
    }

    async fn attest(&mut self, who: (usize, usize)) {
        let Some(claim) = self.model.claims.get(&who) else { return };
        let row = self.real.row(claim.domain).await;
        let done = self.real.attest(row).await;
        let owner = self.model.owners.get(&who.1).map(|(owner, _)| *owner);
        assert_eq!(
            done.is_ok(),
            owner.is_none_or(|owner| owner == who.0),
            "the operator's word displaced somebody"
        );
        assert_eq!(self.model.prove(who, Way::Word), None);
    }

    async fn delete(&mut self, who: (usize, usize)) {
        let Some(claim) = self.model.claims.remove(&who) else { return };
        let row = self.real.row(claim.domain).await;
        let mut write = self.real.write().await;
        claim::delete(&mut write, row).await.unwrap();
        write.commit().await.unwrap();
        if self.model.owners.get(&who.1).is_some_and(|(owner, _)| *owner == who.0) {
            self.model.owners.remove(&who.1);
        }
        let mut read = self.real.app.parts.store.read().await.unwrap();
        let grave = domain::find_any(&mut read, claim.domain).await.unwrap().unwrap();
        assert!(grave.deleted_at.is_some() && !grave.served, "no tombstone is left");
    }

    /// As the reconciler does it, one claim after the other.
    async fn round(&mut self) {
        let now = self.real.clock.now_ms();
        let due =
            domain::due(&mut self.real.app.parts.store.read().await.unwrap(), now, 1_000).await.unwrap();
        let whose: BTreeMap<DomainId, (usize, usize)> =
            self.model.claims.iter().map(|(who, claim)| (claim.domain, *who)).collect();
        for row in due {
            let who = *whose.get(&row.id).expect("a claim that was deleted is looked at");
            if let Some(look) = self.look(who).await {
                self.act(&look).await;
            }
        }
        // What nobody has proved for a week is not looked at any more.
        for (who, claim) in &self.model.claims {
            let row = self.real.row(claim.domain).await;
            let is_old = now - claim.made_at >= CLAIM_LASTS_MS;
            if is_old && !row.served {
                assert!(row.check_at.is_none_or(|at| at > now), "{who:?} is looked at for ever");
            }
        }
    }

    /// The name of the operation is served as the model has it.
    async fn check_host(&self, host: usize) {
        let mut read = self.real.app.parts.store.read().await.unwrap();
        let served = domain::find_served(&mut read, &name_of(&self.base, host)).await.unwrap();
        let owner = self.model.owners.get(&host);
        assert_eq!(
            served.as_ref().map(|row| row.tenant_id),
            owner.map(|(owner, _)| self.real.tenants[*owner]),
            "{}",
            name_of(&self.base, host)
        );
        if let (Some(row), Some((owner, way))) = (&served, owner) {
            assert_eq!(row.id, self.model.claims[&(*owner, host)].domain);
            let standing = proofs::standing(&mut read, row.id).await.unwrap().expect("it stands on a proof");
            let is_wildcard = row.name.is_wildcard();
            assert!(!is_wildcard || matches!(standing.method, ProofMethod::Txt | ProofMethod::Attestation));
            assert_eq!(standing.method == ProofMethod::Attestation, *way == Way::Word);
        }
    }

    /// Everything that the history has: rows, what edges are told, and who would answer for any host.
    async fn check_all(&self) {
        let mut read = self.real.app.parts.store.read().await.unwrap();
        let filter = DomainFilter { part: Some(self.base.clone()), limit: 1_000, ..DomainFilter::default() };
        let rows = domain::list(&mut read, &filter).await.unwrap();
        assert_eq!(rows.len(), self.model.claims.len(), "a claim too many, or one is lost");
        let mut names: BTreeSet<(TenantId, String)> = BTreeSet::new();
        let mut served: BTreeMap<String, String> = BTreeMap::new();
        for row in &rows {
            let name = row.name.to_string();
            assert!(names.insert((row.tenant_id, name.clone())), "{name} is there twice for one tenant");
            assert_eq!(name, name.to_ascii_lowercase().trim_end_matches('.'), "kept in another spelling");
            let told = change::version(&mut read, ResourceKind::Domain, &row.id.to_string()).await.unwrap();
            assert_eq!(told.is_some(), row.served, "{name}: edges are told something else");
            if row.served {
                let before = served.insert(name.clone(), row.tenant_id.to_string());
                assert_eq!(before, None, "{name} is served for two");
            }
        }
        for host in 0..NAMES.len() {
            self.check_host_in(&served, host);
        }
        // No wildcard captures what somebody has proved, and none reaches two labels down.
        let hosts = ["a", "b", "zz", "x.b", "zz.b", "y.zz"].map(|label| format!("{label}.{}", self.base));
        for host in hosts.iter().chain([&self.base]) {
            let expected = self.model_route(host).map(|owner| self.real.tenants[owner].to_string());
            let above = host.split_once('.').map(|(_, above)| format!("*.{above}"));
            let found = served.get(host).or_else(|| served.get(&above?));
            assert_eq!(found.cloned(), expected, "{host}");
        }
    }

    fn check_host_in(&self, served: &BTreeMap<String, String>, host: usize) {
        let owner = self.model.owners.get(&host).map(|(owner, _)| self.real.tenants[*owner].to_string());
        assert_eq!(served.get(&name_of(&self.base, host).to_string()), owner.as_ref());
    }

    /// Who answers for a host: whoever has proved exactly it, else whoever has proved the wildcard right above it.
    fn model_route(&self, host: &str) -> Option<usize> {
        let of = |wanted: &str| {
            let at = (0..NAMES.len()).find(|at| name_of(&self.base, *at).to_string() == wanted)?;
            self.model.owners.get(&at).map(|(owner, _)| *owner)
        };
        of(host).or_else(|| of(&format!("*.{}", host.split_once('.')?.1)))
    }

    /// Nothing of it counts for the next one.
    async fn end(mut self) {
        self.check_all().await;
        let claims: Vec<(usize, usize)> = self.model.claims.keys().copied().collect();
        for who in claims {
            self.delete(who).await;
        }
        self.check_all().await;
    }
}

fn host_of(operation: &Operation) -> Option<usize> {
    match operation {
        Operation::Claim { who, .. }
        | Operation::Check { who }
        | Operation::Attest { who }
        | Operation::Delete { who } => Some(who.1).filter(|host| *host < NAMES.len()),
        Operation::Publish { .. }
        | Operation::Withdraw { .. }
        | Operation::Point { .. }
        | Operation::Look { .. }
        | Operation::ActOnLook { .. }
        | Operation::Dark { .. }
        | Operation::Round
        | Operation::Advance { .. } => None,
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Says how to have the same history again.
struct OnFailure {
    seed: u64,
    tried: Vec<String>,
}

impl Drop for OnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let last = self.tried.len().saturating_sub(20);
            eprintln!(
                "PORTICO_MODEL_SEED={}; the last operations:\n{}",
                self.seed,
                self.tried[last..].join("\n")
            );
        }
    }
}

#[test]
fn a_name_is_served_for_whoever_proved_it_last_and_for_nobody_else() {
    const HISTORY: u64 = 2_000;
    let wanted = from_environment("PORTICO_MODEL_OPERATIONS").unwrap_or(4_000);
    let first = from_environment("PORTICO_MODEL_SEED").unwrap_or(1);
    runtime().block_on(async {
        let real = Real::start().await;
        let (mut changed, mut displaced) = (0, 0);
        for seed in first..first + wanted.div_ceil(HISTORY) {
            let mut history = History::new(&real, format!("h{seed}.example"));
            let (mut dice, mut trace) = (Dice(seed), OnFailure { seed, tried: Vec::new() });
            for _ in 0..HISTORY {
                let operation = dice.operation();
                trace.tried.push(format!("{operation:?}"));
                let before = history.model.owners.clone();
                history.apply(&operation).await;
                if let Some(host) = host_of(&operation) {
                    history.check_host(host).await;
                }
                changed += u64::from(history.model.owners != before);
                let is_taken = |(host, (owner, _)): (&usize, &(usize, Way))| {
                    before.get(host).is_some_and(|(of, _)| of != owner)
                };
                displaced += u64::from(history.model.owners.iter().any(is_taken));
            }
            history.end().await;
        }
        println!("{changed} operations changed who is served, {displaced} of them took a name from somebody");
        assert!(changed > wanted / 50 && displaced > wanted / 500, "the histories try too little");
    });
}

/// Two tenants' ways to their names, in every order that keeps each one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Claim(usize),
    Prove(usize),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// A wildcard and a host below it, or one name that two claim and one proves: whoever comes first, it ends the same.
    #[test]
    fn the_order_of_arrival_does_not_matter(
        pair in prop::sample::select(vec![(3usize, 1usize), (5, 4), (3, 2), (0, 3), (1, 1), (3, 3)]),
        order in Just(vec![0usize, 0, 1, 1]).prop_shuffle(),
    ) {
        let ends: Vec<Vec<Option<usize>>> = runtime().block_on(async {
            let real = Real::start().await;
            let mut ends = Vec::new();
            for (n, order) in [order.clone(), vec![0, 0, 1, 1], vec![1, 1, 0, 0]].into_iter().enumerate() {
                let mut history = History::new(&real, format!("o{n}.example"));
                let hosts = [pair.0, pair.1];
                let is_rivalry = pair.0 == pair.1;
                let mut had = [0, 0];
                for tenant in order {
                    let step = if had[tenant] == 0 { Step::Claim(tenant) } else { Step::Prove(tenant) };
                    had[tenant] += 1;
                    let who = (tenant, hosts[tenant]);
                    match step {
                        Step::Claim(_) => history.apply(&Operation::Claim { who, spelling: n }).await,
                        // Of rivals one alone can write the zone.
                        Step::Prove(0) if is_rivalry => history.apply(&Operation::Check { who }).await,
                        Step::Prove(_) => {
                            history.apply(&Operation::Publish { who, way: Way::Txt }).await;
                            history.apply(&Operation::Check { who }).await;
                        }
                    }
                }
                history.check_all().await;
                let probes = ["a", "b", "zz", "x.b", "zz.b"].map(|label| format!("{label}.{}", history.base));
                ends.push(probes.iter().map(|host| history.model_route(host)).collect());
                history.end().await;
            }
            ends
        });
        prop_assert!(ends.iter().all(|end| *end == ends[0]), "{:?}", ends);
    }
}

#[test]
fn every_spelling_is_the_same_name() {
    for (host, spellings) in NAMES.iter().enumerate() {
        let names: BTreeSet<NamePattern> = (0..spellings.len())
            .map(|spelling| spelt("shop.example", host, spelling).parse().unwrap())
            .collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }
}
