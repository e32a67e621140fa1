//! What the stub knows: records, names that do not exist, names that fail, zones that others answer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};

use hickory_proto::rr::rdata::{A, CNAME, NS, TXT};
use hickory_proto::rr::{Name, RData, RecordType};
use serde::{Deserialize, Serialize};

/// All data of the stub.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Answer for names with no address of their own; empty: such names do not exist.
    default_a: Vec<Ipv4Addr>,
    /// By reversed labels (`test.shop.www`), so that what lies below a name is one range.
    names: BTreeMap<String, BTreeMap<RecordType, Vec<RData>>>,
    nxdomain: HashSet<String>,
    faults: HashMap<String, NameFault>,
    /// Zone apex by reversed labels.
    forwards: BTreeMap<String, SocketAddr>,
}

/// What the stub does for one name in place of answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NameFault {
    Servfail,
    Refused,
    /// No answer at all.
    Timeout,
}

/// What is known here about one name and type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Local {
    Found(Vec<RData>),
    Alias(Name),
    NoData,
    NoName,
    Forward(SocketAddr),
    Fault(NameFault),
}

/// A record set as it comes over the management listener.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordSet {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) values: Vec<String>,
}

/// A checked record set; no values means removal.
#[derive(Clone, Debug)]
pub(crate) struct ParsedSet {
    key: String,
    kind: RecordType,
    data: Vec<RData>,
}

/// Names kept at the most; a name with one record takes about 300 bytes.
const NAMES_MAX: usize = 1_000_000;
const VALUES_MAX: usize = 100;
const TEXT_BYTES_MAX: usize = 4_000;
const KINDS: [RecordType; 6] =
    [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::CNAME, RecordType::NS, RecordType::CAA];

impl Records {
    /// No records; `default_a` as in the field.
    pub(crate) fn new(default_a: Vec<Ipv4Addr>) -> Self {
        Self { default_a, ..Self::default() }
    }

    /// Replaces record sets.
    ///
    /// # Errors
    /// Too many names; nothing is changed then.
    pub(crate) fn replace(&mut self, sets: Vec<ParsedSet>) -> Result<(), String> {
        if self.names.len() + sets.len() > NAMES_MAX {
            return Err(format!("more than {NAMES_MAX} names"));
        }
        for set in sets {
            if set.data.is_empty() {
                self.remove(&set);
            } else {
                self.names.entry(set.key).or_default().insert(set.kind, set.data);
            }
        }
        Ok(())
    }

    fn remove(&mut self, set: &ParsedSet) {
        let Some(entry) = self.names.get_mut(&set.key) else { return };
        entry.remove(&set.kind);
        if entry.is_empty() {
            self.names.remove(&set.key);
        }
    }

    /// The record sets of one name.
    pub(crate) fn sets_of(&self, name: &Name) -> Vec<RecordSet> {
        let entry = self.names.get(&key_of(name));
        let sets = entry.into_iter().flatten().map(|(kind, data)| RecordSet {
            name: text_of(name),
            kind: kind.to_string(),
            values: data.iter().map(value_text).collect(),
        });
        sets.collect()
    }

    /// Answers from what is known here.
    pub(crate) fn local(&self, name: &Name, kind: RecordType) -> Local {
        let key = key_of(name);
        if let Some(fault) = self.faults.get(&key) {
            return Local::Fault(*fault);
        }
        if let Some(address) = self.forward_of(&key) {
            return Local::Forward(address);
        }
        if let Some(entry) = self.names.get(&key).or_else(|| self.wildcard(&key)) {
            return self.within_entry(entry, kind);
        }
        if self.nxdomain.contains(&key) {
            return Local::NoName;
        }
        if !self.default_a.is_empty() {
            return self.default_for(kind);
        }
        if self.has_below(&key) { Local::NoData } else { Local::NoName }
    }

    /// The server that answers for `name`, if it lies at or below a forwarded zone.
    pub(crate) fn forward_for(&self, name: &Name) -> Option<SocketAddr> {
        self.forward_of(&key_of(name))
    }

    /// Answers at or below `zone` come from `address` from now on.
    pub(crate) fn forward(&mut self, zone: &Name, address: Option<SocketAddr>) {
        match address {
            Some(address) => drop(self.forwards.insert(key_of(zone), address)),
            None => drop(self.forwards.remove(&key_of(zone))),
        }
    }

    /// Zones and where they are answered.
    pub(crate) fn forward_list(&self) -> BTreeMap<String, SocketAddr> {
        self.forwards.iter().map(|(key, address)| (reversed(key), *address)).collect()
    }

    /// A name without records that does not exist (`true`) or follows the default again.
    pub(crate) fn deny(&mut self, name: &Name, denied: bool) {
        if denied {
            self.nxdomain.insert(key_of(name));
        } else {
            self.nxdomain.remove(&key_of(name));
        }
    }

    /// Names that do not exist.
    pub(crate) fn denied(&self) -> Vec<String> {
        let mut names: Vec<String> = self.nxdomain.iter().map(|key| reversed(key)).collect();
        names.sort();
        names
    }

    /// Sets or ends the fault of a name.
    pub(crate) fn set_fault(&mut self, name: &Name, fault: Option<NameFault>) {
        match fault {
            Some(fault) => drop(self.faults.insert(key_of(name), fault)),
            None => drop(self.faults.remove(&key_of(name))),
        }
    }

    /// Names with faults.
    pub(crate) fn fault_list(&self) -> BTreeMap<String, NameFault> {
        self.faults.iter().map(|(key, fault)| (reversed(key), *fault)).collect()
    }

    /// Names that have records.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    fn within_entry(&self, entry: &BTreeMap<RecordType, Vec<RData>>, kind: RecordType) -> Local {
        if let Some(data) = entry.get(&kind) {
            return Local::Found(data.clone());
        }
        if let Some([RData::CNAME(target), ..]) = entry.get(&RecordType::CNAME).map(Vec::as_slice) {
            return Local::Alias(target.0.clone());
        }
        let has_address = entry.contains_key(&RecordType::A) || entry.contains_key(&RecordType::AAAA);
        if has_address { Local::NoData } else { self.default_for(kind) }
    }

    fn default_for(&self, kind: RecordType) -> Local {
        if kind != RecordType::A || self.default_a.is_empty() {
            return Local::NoData;
        }
        Local::Found(self.default_a.iter().map(|address| RData::A(A(*address))).collect())
    }

    /// The nearest `*.ancestor` with records.
    fn wildcard(&self, key: &str) -> Option<&BTreeMap<RecordType, Vec<RData>>> {
        let mut ancestor = key;
        while let Some((parent, _)) = ancestor.rsplit_once('.') {
            if let Some(entry) = self.names.get(&format!("{parent}.*")) {
                return Some(entry);
            }
            ancestor = parent;
        }
        None
    }

    /// The zone nearest to the name wins.
    fn forward_of(&self, key: &str) -> Option<SocketAddr> {
        if self.forwards.is_empty() {
            return None;
        }
        let mut at = key;
        loop {
            if let Some(address) = self.forwards.get(at) {
                return Some(*address);
            }
            at = at.rsplit_once('.')?.0;
        }
    }

    fn has_below(&self, key: &str) -> bool {
        let prefix = format!("{key}.");
        self.names.range(prefix.clone()..).next().is_some_and(|(name, _)| name.starts_with(&prefix))
    }
}

impl RecordSet {
    /// Checks name, type and values.
    ///
    /// # Errors
    /// What is wrong, with the name.
    pub(crate) fn parse(&self) -> Result<ParsedSet, String> {
        let name = parse_name(&self.name)?;
        let kind = KINDS.into_iter().find(|kind| kind.to_string() == self.kind);
        let kind = kind.ok_or_else(|| {
            format!("{}: type {:?} is not one of A, AAAA, TXT, CNAME, NS, CAA", self.name, self.kind)
        })?;
        if self.values.len() > VALUES_MAX {
            return Err(format!("{}: more than {VALUES_MAX} values", self.name));
        }
        if kind == RecordType::CNAME && self.values.len() > 1 {
            return Err(format!("{}: a name has one CNAME", self.name));
        }
        let data: Result<Vec<RData>, String> = self.values.iter().map(|v| parse_value(kind, v)).collect();
        let data = data.map_err(|reason| format!("{} {}: {reason}", self.name, self.kind))?;
        Ok(ParsedSet { key: key_of(&name), kind, data })
    }
}

/// Reads a name; it is absolute with or without the trailing dot.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse_name(text: &str) -> Result<Name, String> {
    if text.is_empty() {
        return Err("an empty name".to_owned());
    }
    let mut name = Name::from_ascii(text).map_err(|error| format!("{text:?}: {error}"))?;
    name.set_fqdn(true);
    Ok(name)
}

/// Lower case, no trailing dot.
pub(crate) fn text_of(name: &Name) -> String {
    name.to_lowercase().to_ascii().trim_end_matches('.').to_owned()
}

fn parse_value(kind: RecordType, text: &str) -> Result<RData, String> {
    if kind == RecordType::TXT {
        return parse_text(text);
    }
    if kind == RecordType::CNAME {
        return parse_name(text).map(|name| RData::CNAME(CNAME(name)));
    }
    if kind == RecordType::NS {
        return parse_name(text).map(|name| RData::NS(NS(name)));
    }
    let form = if kind == RecordType::CAA { r#", written as in: 0 issue "ca.example""# } else { "" };
    RData::try_from_str(kind, text).map_err(|_| format!("{text:?} is no {kind} value{form}"))
}

/// A TXT record of one text, in strings of at most 255 bytes (RFC 1035 section 3.3).
fn parse_text(text: &str) -> Result<RData, String> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("longer than {TEXT_BYTES_MAX} bytes"));
    }
    let parts: Vec<&[u8]> = if text.is_empty() { vec![b""] } else { text.as_bytes().chunks(255).collect() };
    Ok(RData::TXT(TXT::from_bytes(parts)))
}

fn value_text(data: &RData) -> String {
    let RData::TXT(txt) = data else { return data.to_string() };
    txt.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect()
}

fn key_of(name: &Name) -> String {
    reversed(&text_of(name))
}

fn reversed(dotted: &str) -> String {
    let mut labels: Vec<&str> = dotted.split('.').collect();
    labels.reverse();
    labels.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(sets: &[(&str, &str, &[&str])]) -> Records {
        let mut records = Records::default();
        let parsed = sets.iter().map(|(name, kind, values)| {
            let values = values.iter().map(|v| (*v).to_owned()).collect();
            RecordSet { name: (*name).to_owned(), kind: (*kind).to_owned(), values }.parse().unwrap()
        });
        records.replace(parsed.collect()).unwrap();
        records
    }

    fn ask(records: &Records, name: &str, kind: RecordType) -> Local {
        records.local(&parse_name(name).unwrap(), kind)
    }

    #[test]
    fn the_default_address_stands_in_where_a_name_has_none() {
        let mut records = records(&[("txt.test", "TXT", &["x"]), ("six.test", "AAAA", &["::1"])]);
        assert_eq!(ask(&records, "free.test", RecordType::A), Local::NoName);
        records.default_a = vec![Ipv4Addr::LOCALHOST];
        let default = Local::Found(vec![RData::A(A(Ipv4Addr::LOCALHOST))]);
        assert_eq!(ask(&records, "Free.TEST.", RecordType::A), default);
        assert_eq!(ask(&records, "txt.test", RecordType::A), default);
        assert_eq!(ask(&records, "six.test", RecordType::A), Local::NoData);
        assert_eq!(ask(&records, "free.test", RecordType::AAAA), Local::NoData);
        records.deny(&parse_name("free.test").unwrap(), true);
        assert_eq!(ask(&records, "free.test", RecordType::A), Local::NoName);
        records.deny(&parse_name("free.test").unwrap(), false);
        assert_eq!(ask(&records, "free.test", RecordType::A), default);
    }

    #[test]
    fn wildcards_empty_non_terminals_and_nearest_forward() {
        let mut records = records(&[("*.w.test", "A", &["127.0.0.9"]), ("a.b.c.test", "A", &["127.0.0.8"])]);
        assert!(matches!(ask(&records, "x.w.test", RecordType::A), Local::Found(_)));
        assert!(matches!(ask(&records, "y.x.w.test", RecordType::A), Local::Found(_)));
        assert_eq!(ask(&records, "b.c.test", RecordType::A), Local::NoData);
        assert_eq!(ask(&records, "x.c.test", RecordType::A), Local::NoName);
        let (near, far) = (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
        records.forward(&parse_name("test").unwrap(), Some(far));
        records.forward(&parse_name("c.test").unwrap(), Some(near));
        assert_eq!(ask(&records, "a.b.c.test", RecordType::A), Local::Forward(near));
        assert_eq!(ask(&records, "xc.test", RecordType::A), Local::Forward(far));
        records.forward(&parse_name("test").unwrap(), None);
        assert_eq!(ask(&records, "xc.test", RecordType::A), Local::NoName);
    }

    #[test]
    fn wrong_record_sets_are_refused_and_empty_ones_remove() {
        let wrong = [
            ("", "A", "127.0.0.1"),
            ("a.test", "MX", "1 b.test"),
            ("a.test", "A", "::1"),
            ("a.test", "AAAA", "127.0.0.1"),
            ("a.test", "CAA", "nonsense"),
            ("a..test", "A", "127.0.0.1"),
        ];
        for (name, kind, value) in wrong {
            let set =
                RecordSet { name: name.to_owned(), kind: kind.to_owned(), values: vec![value.to_owned()] };
            assert!(set.parse().is_err(), "{name} {kind} {value}");
        }
        let mut records = records(&[("a.test", "CAA", &["0 issue \"ca.test\""])]);
        assert_eq!(records.sets_of(&parse_name("A.test").unwrap())[0].values, ["0 issue \"ca.test\""]);
        let empty = RecordSet { name: "a.test".to_owned(), kind: "CAA".to_owned(), values: vec![] };
        records.replace(vec![empty.parse().unwrap()]).unwrap();
        assert_eq!(records.len(), 0);
    }
}
