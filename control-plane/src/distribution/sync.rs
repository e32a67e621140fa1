//! One edge's stream, from its Hello to its end.
//!
//! Two halves run side by side: one listens (acks, urgent acks, status), the other feeds (cell keys, then a snapshot or
//! deltas, one batch in flight). Urgent messages do not pass through here; they have their own queue into the stream and
//! go before whatever waits in the other.

use std::time::Duration;

use portico_api::distribution::{
    Ack, ControlMessage, EdgeMessage, Hello, PROTOCOL_VERSION, control_message, edge_message,
};
use portico_cert_store::{CellId, Custody, EdgeId, Generation};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use super::context::Context;
use super::feed::Feed;
use super::fleet::Membership;
use super::join::BUILD_CHARS_MAX;
use super::{purge, usage};
use crate::store::edge::{self, EdgeRow};
use crate::store::{StoreError, edge_key, event, meta};

/// The edge speaks first, within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Acks that the feeding half has not taken yet; an edge has one batch in flight, so a second is already odd.
const ACKS_QUEUE: usize = 4;
/// No restored backup is this many epochs behind; an edge that reports more is broken or lies.
const EPOCH_LEAP_MAX: u64 = 1_000_000;

/// Where a stream's messages go.
pub(super) struct Outgoing {
    pub(super) bulk: mpsc::Sender<Result<ControlMessage, Status>>,
    /// Given once the edge is known: what stands, and the queue of what comes.
    pub(super) urgents: oneshot::Sender<(Vec<ControlMessage>, mpsc::Receiver<ControlMessage>)>,
}

/// Serves `edge` until either side ends; the reason goes to the edge as the stream's status.
pub(super) async fn serve_edge(
    context: &Context,
    edge: EdgeId,
    incoming: Streaming<EdgeMessage>,
    outgoing: Outgoing,
) {
    let bulk = outgoing.bulk.clone();
    let ended = serve(context, edge, incoming, outgoing).await;
    match ended {
        Ok(()) => tracing::info!(%edge, "edge closed its stream"),
        Err(status) => {
            tracing::info!(%edge, code = ?status.code(), reason = status.message(), "stream ended");
            // The edge may be gone, then nobody is left to tell.
            let _gone = bulk.try_send(Err(status));
        }
    }
}

async fn serve(
    context: &Context,
    edge: EdgeId,
    mut incoming: Streaming<EdgeMessage>,
    outgoing: Outgoing,
) -> Result<(), Status> {
    let hello = read_hello(&mut incoming).await?;
    let edge = check_hello(context, edge, &hello).await?;
    let base = check_base(context, edge.id, hello.applied.unwrap_or_default().into()).await?;
    let (member, mut standing, urgents) = context.fleet.connect(&edge, &hello);
    standing.extend(purge::missed(context, &hello).await.map_err(unavailable)?);
    resume_orders(context, &edge.cell).await.map_err(unavailable)?;
    // The stream is polled by the transport; if it is gone, the halves below end at once.
    let _gone = outgoing.urgents.send((standing, urgents));
    let (acks, acked) = mpsc::channel(ACKS_QUEUE);
    let answers = outgoing.bulk.clone();
    let feed = Feed::open(context, &edge, &hello, base, outgoing.bulk, acked).await?;
    tokio::select! {
        ended = listen(context, &member, &mut incoming, acks, answers) => ended,
        ended = feed.run(&member) => ended,
        () = member.closed.cancelled() => {
            Err(Status::aborted("another stream of this edge took over, or the edge was removed"))
        }
        () = context.shutdown.cancelled() => Err(Status::unavailable("the control plane ends; connect again")),
    }
}

async fn read_hello(incoming: &mut Streaming<EdgeMessage>) -> Result<Hello, Status> {
    let first = tokio::time::timeout(HELLO_DEADLINE, incoming.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello within 10 s"))??;
    match first.and_then(|message| message.kind) {
        Some(edge_message::Kind::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message of a stream must be Hello")),
    }
}

/// Who speaks is known from the certificate; what the Hello says must agree with what is stored.
async fn check_hello(context: &Context, id: EdgeId, hello: &Hello) -> Result<EdgeRow, Status> {
    let row = edge::find(&mut *context.store.read().await.map_err(unavailable)?, id).await;
    let mut row = row.map_err(unavailable)?.ok_or_else(|| removed(id))?;
    if hello.edge_id != id.to_string() {
        return Err(Status::permission_denied(format!(
            "the certificate is that of {id}, the Hello's is not"
        )));
    }
    if hello.cell_id != row.cell.as_str() {
        return Err(Status::failed_precondition(format!(
            "edge {id} joined cell {}, not {:.32}: an edge stays in its cell; to move it, join again",
            row.cell, hello.cell_id
        )));
    }
    if hello.protocol == 0 || hello.protocol.abs_diff(PROTOCOL_VERSION) > 1 {
        return Err(Status::failed_precondition(format!(
            "protocol {} is more than one version from ours, {PROTOCOL_VERSION}: upgrade the older side first",
            hello.protocol
        )));
    }
    let build: String = hello.build.chars().take(BUILD_CHARS_MAX).collect();
    if build != row.build || hello.hpke_public_key != row.hpke_public_key {
        let mut tx = context.store.begin().await.map_err(unavailable)?;
        edge::greeted(&mut tx, id, &build, &hello.hpke_public_key).await.map_err(unavailable)?;
        tx.commit().await.map_err(unavailable)?;
        row.build = build;
        row.hpke_public_key = hello.hpke_public_key.to_vec();
    }
    Ok(row)
}

/// Orders that wait for a key of this edge need not look by themselves when it is back.
async fn resume_orders(context: &Context, cell: &CellId) -> Result<(), StoreError> {
    if edge_key::custody(&mut *context.store.read().await?, cell).await? != Custody::Edge {
        return Ok(());
    }
    let mut tx = context.store.begin().await?;
    if edge_key::resume_orders(&mut tx, cell, context.clock.now_ms()).await? > 0 {
        tx.commit().await?;
    }
    Ok(())
}

pub(super) fn removed(id: EdgeId) -> Status {
    Status::permission_denied(format!(
        "edge {id} is not known here or was removed: join again with a new token"
    ))
}

/// An edge that is ahead of us shows that our database was restored or reset: our epoch rises above its, so that what we
/// publish is newer for every edge.
async fn check_base(context: &Context, id: EdgeId, applied: Generation) -> Result<Generation, Status> {
    if applied <= context.publisher.generation() {
        return Ok(applied);
    }
    // It may have learnt of a commit that the publisher has not read yet.
    let ours = context.publisher.advance().await.map_err(unavailable)?;
    if applied <= ours {
        return Ok(applied);
    }
    if applied.epoch.saturating_sub(ours.epoch) > EPOCH_LEAP_MAX {
        return Err(Status::failed_precondition(format!(
            "generation {applied} is absurdly far above ours, {ours}: empty the edge's state folder"
        )));
    }
    raise_epoch(context, id, applied).await.map_err(unavailable)?;
    context.publisher.advance().await.map_err(unavailable)?;
    Ok(applied)
}

async fn raise_epoch(context: &Context, id: EdgeId, applied: Generation) -> Result<(), StoreError> {
    let now = context.clock.now_ms();
    let mut tx = context.store.begin().await?;
    let epoch = meta::raise_epoch(&mut tx, applied.epoch + 1).await?;
    let text = format!(
        "edge reports generation {applied}, which this database has not reached: it was restored or reset; \
         the epoch is now {epoch} and every edge gets a snapshot"
    );
    tracing::warn!(edge = %id, %applied, epoch, "an edge is ahead of this database; raised the epoch");
    event::append(&mut tx, "fleet.epoch_raised", None, &id.to_string(), &text, now).await?;
    tx.commit().await
}

async fn listen(
    context: &Context,
    member: &Membership,
    incoming: &mut Streaming<EdgeMessage>,
    acks: mpsc::Sender<Ack>,
    answers: mpsc::Sender<Result<ControlMessage, Status>>,
) -> Result<(), Status> {
    while let Some(message) = incoming.message().await? {
        member.heard();
        match message.kind {
            Some(edge_message::Kind::Ack(ack)) => {
                acks.try_send(ack).map_err(|_| Status::resource_exhausted("more acks than batches"))?;
            }
            Some(edge_message::Kind::UrgentAck(ack)) => context.fleet.urgent_acked(member.edge, &ack),
            Some(edge_message::Kind::Status(status)) => member.observe(status),
            Some(edge_message::Kind::Hello(_)) => {
                return Err(Status::invalid_argument("a second Hello on one stream"));
            }
            Some(edge_message::Kind::Usage(report)) => {
                let ack = usage::received(context, member.edge, report).await?;
                // The stream has ended when nobody takes it.
                let _ended = answers.send(Ok(wrap(control_message::Kind::UsageAck(ack)))).await;
            }
            // A newer edge's message: tolerated (skew N/N-1).
            None => {}
        }
    }
    Ok(())
}

pub(super) fn unavailable(error: impl std::error::Error + 'static) -> Status {
    tracing::error!(error = &error as &dyn std::error::Error, "cannot serve an edge");
    Status::unavailable("the control plane's store does not answer; connect again")
}

pub(super) fn wrap(kind: control_message::Kind) -> ControlMessage {
    ControlMessage { kind: Some(kind) }
}
