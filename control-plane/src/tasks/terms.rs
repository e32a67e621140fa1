//! Work that one replica does at a time: it begins with a term ([`crate::store::lease`]) and ends with it.

use std::future::Future;
use std::time::Duration;

use crate::Parts;
use crate::metrics;
use crate::store::StoreError;
use crate::store::lease::{self, LASTS, Term, Watched};

/// A replica without the term looks this often whether it is free.
const LOOK: Duration = Duration::from_secs(1);

/// Runs `body` whenever this replica has the term of `work`, until the control plane ends. What `body` writes is bound to
/// its term; when that is over, `body` is dropped where it stands, as by a crash. A database of our own has no terms.
///
/// # Errors
/// Those of `body`.
pub(crate) async fn hold<B, F>(parts: &Parts, work: &'static str, body: B) -> anyhow::Result<()>
where
    B: Fn(Parts) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    metrics::works(work, !parts.store.is_shared());
    if !parts.store.is_shared() {
        return Box::pin(body(parts.clone())).await;
    }
    while let Some(term) = next(parts, work).await {
        tracing::info!(work, replica = parts.replica, "this replica does the work from now on");
        let shown = Shown::new(work);
        tokio::select! {
            ended = Box::pin(body(parts.within(term.clone()))) => {
                if let Err(error) = &ended
                    && !term.stands()
                {
                    // It was refused for that, and not for a fault of its own.
                    tracing::warn!(work, replica = parts.replica, "the term is over: {error:#}");
                    continue;
                }
                if let Err(error) = give_up(parts, &term).await {
                    tracing::info!(%error, work, "the next replica begins when the term is over");
                }
                return ended;
            }
            () = keep(parts, &term) => {
                tracing::warn!(work, replica = parts.replica, "the term is over; another replica may do the work");
            }
        }
        drop(shown);
    }
    Ok(())
}

/// The metric says that this replica does the work.
struct Shown(&'static str);

impl Shown {
    fn new(work: &'static str) -> Self {
        metrics::works(work, true);
        Self(work)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        metrics::works(self.0, false);
    }
}

/// `None`: the control plane ends.
async fn next(parts: &Parts, work: &'static str) -> Option<Term> {
    let mut watched = Watched::default();
    while !parts.shutdown.is_cancelled() {
        match take(parts, work, &mut watched).await {
            Ok(Some(term)) => return Some(term),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, work, "whether the work is free cannot be seen"),
        }
        tokio::select! {
            () = parts.shutdown.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    None
}

async fn take(parts: &Parts, work: &'static str, watched: &mut Watched) -> Result<Option<Term>, StoreError> {
    let free = lease::free(&mut *parts.store.read().await?, work, &parts.replica, watched).await?;
    let Some(free) = free else { return Ok(None) };
    let mut tx = parts.store.begin().await?;
    let term = lease::take(&mut tx, work, &parts.replica, free).await?;
    tx.commit().await?;
    Ok(term)
}

/// Renews the term; ends when it is over, or may be.
async fn keep(parts: &Parts, term: &Term) {
    let mut pause = LASTS / 3;
    loop {
        tokio::time::sleep(pause).await;
        let renewed = async {
            let mut tx = parts.store.begin_renewal().await?;
            let Some(renewal) = lease::renew(&mut tx, term).await? else { return Ok(false) };
            tx.commit().await?;
            renewal.committed();
            Ok::<_, StoreError>(true)
        };
        match tokio::time::timeout(LASTS / 3, renewed).await {
            Ok(Ok(true)) => pause = LASTS / 3,
            Ok(Ok(false)) => return,
            Ok(Err(_)) | Err(_) if !term.stands() => return,
            Ok(Err(_)) | Err(_) => pause = LOOK,
        }
    }
}

async fn give_up(parts: &Parts, term: &Term) -> Result<(), StoreError> {
    let mut tx = parts.store.begin().await?;
    lease::give_up(&mut tx, term).await?;
    tx.commit().await
}
