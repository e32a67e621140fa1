//! What an edge refuses, kept where operators look: the table of nacks, and an event for each new one.

use std::collections::{BTreeMap, HashSet};

use portico_api::distribution::{Nack, Rejection};
use portico_cert_store::{EdgeId, Generation};

use super::context::Context;
use super::resource::ResourceKey;
use crate::store::edge::{self, NackRow};
use crate::store::{StoreError, event};

/// Kept of a code and of a text, characters; both come from the edge.
const CODE_CHARS_MAX: usize = 64;
const TEXT_CHARS_MAX: usize = 512;
/// Nacks of one batch that are recorded one by one; a batch with more has one cause.
const NACKS_RECORDED_MAX: usize = 200;
/// The kind under which a refused batch is recorded.
pub(super) const BATCH_KIND: u32 = 0;
const BATCH_ID: &str = "batch";

/// The resources that one edge refuses at present.
#[derive(Debug)]
pub(super) struct Refusals {
    edge: EdgeId,
    /// (kind, id), as stored, with the version and the code.
    open: BTreeMap<(u32, String), (u64, String)>,
    /// The last one that was sent again.
    sent_again: Option<(u32, String)>,
}

impl Refusals {
    pub(super) async fn load(context: &Context, edge: EdgeId) -> Result<Self, StoreError> {
        let rows = edge::nacks(&mut *context.store.read().await?, edge).await?;
        let open = rows.into_iter().map(|row| ((row.kind, row.id), (row.version, row.code))).collect();
        Ok(Self { edge, open, sent_again: None })
    }

    /// The next of the refused resources, in turns: at most `count`.
    pub(super) fn next(&mut self, count: usize) -> Vec<ResourceKey> {
        let last = self.sent_again.take();
        let (before, after): (Vec<_>, Vec<_>) =
            self.open.keys().partition(|key| last.as_ref().is_some_and(|last| *key <= last));
        let turn: Vec<_> = after.into_iter().chain(before).take(count).cloned().collect();
        self.sent_again = turn.last().cloned();
        turn.iter().filter_map(|(kind, id)| key_of(*kind, id)).collect()
    }

    /// A batch was applied but for `nacks`. What it carried and the edge took is refused no longer; with a `whole`
    /// snapshot, nothing else is.
    pub(super) async fn applied(
        &mut self,
        context: &Context,
        nacks: &[Nack],
        sent: &HashSet<ResourceKey>,
        whole: bool,
    ) -> Result<(), StoreError> {
        let nacks: Vec<_> = nacks.iter().take(NACKS_RECORDED_MAX).map(bounded).collect();
        // Sent again and refused again for the same reason: nothing new to tell.
        let told = |row: &NackRow| self.open.get(&(row.kind, row.id.clone()));
        let (same, new): (Vec<_>, Vec<_>) = nacks.into_iter().partition(|row| {
            told(row).is_some_and(|(version, code)| (*version, code) == (row.version, &row.code))
        });
        let same: HashSet<_> = same.into_iter().map(|row| (row.kind, row.id)).collect();
        let taken = |open: &(u32, String)| !same.contains(open) && (whole || is_over(open, sent));
        let over: Vec<_> = self.open.keys().filter(|open| taken(open)).cloned().collect();
        if over.is_empty() && new.is_empty() {
            return Ok(());
        }
        let now = context.clock.now_ms();
        let mut tx = context.store.begin().await?;
        for (kind, id) in over {
            edge::clear_nack(&mut tx, self.edge, kind, &id).await?;
            self.open.remove(&(kind, id));
        }
        for row in new {
            tracing::warn!(edge = %self.edge, kind = row.kind, id = row.id, code = row.code, "an edge refused a resource");
            // The tenant hears what is wrong with its resource, not which edge said so.
            let text = format!("refused by an edge, which keeps what it had: {}: {}", row.code, row.text);
            edge::put_nack(&mut tx, self.edge, &row, now).await?;
            let tenant = key_of(row.kind, &row.id).and_then(|key| context.publisher.find(key));
            let tenant = tenant.and_then(|(published, _)| published.tenant());
            event::append(&mut tx, "edge.resource_refused", tenant, &row.id, &text, now).await?;
            self.open.insert((row.kind, row.id), (row.version, row.code));
        }
        tx.commit().await
    }

    /// The edge refused a batch as a whole.
    pub(super) async fn rejected(
        &mut self,
        context: &Context,
        rejection: &Rejection,
    ) -> Result<(), StoreError> {
        let refused: Generation = rejection.refused.unwrap_or_default().into();
        let row = NackRow {
            kind: BATCH_KIND,
            id: BATCH_ID.to_owned(),
            version: refused.sequence,
            code: cut(&rejection.code, CODE_CHARS_MAX),
            text: cut(&rejection.text, TEXT_CHARS_MAX),
        };
        tracing::error!(edge = %self.edge, %refused, code = row.code, text = row.text, "an edge refused a batch");
        let text = format!("{} refused generation {refused}: {}: {}", self.edge, row.code, row.text);
        let now = context.clock.now_ms();
        let mut tx = context.store.begin().await?;
        edge::put_nack(&mut tx, self.edge, &row, now).await?;
        event::append(&mut tx, "edge.batch_refused", None, &self.edge.to_string(), &text, now).await?;
        tx.commit().await?;
        self.open.insert((row.kind, row.id), (row.version, row.code));
        Ok(())
    }
}

/// A refused batch is over with the next one that is taken.
fn is_over((kind, id): &(u32, String), sent: &HashSet<ResourceKey>) -> bool {
    *kind == BATCH_KIND || key_of(*kind, id).is_some_and(|key| sent.contains(&key))
}

fn key_of(kind: u32, id: &str) -> Option<ResourceKey> {
    ResourceKey::parse(i32::try_from(kind).ok()?, id)
}

fn bounded(nack: &Nack) -> NackRow {
    NackRow {
        kind: nack.kind,
        id: cut(&nack.id, CODE_CHARS_MAX),
        version: nack.version,
        code: cut(&nack.code, CODE_CHARS_MAX),
        text: cut(&nack.text, TEXT_CHARS_MAX),
    }
}

fn cut(text: &str, chars: usize) -> String {
    text.chars().take(chars).collect()
}
