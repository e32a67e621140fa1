//! A wall clock that jumps: mended by a time server, set by hand, or read after the machine was suspended.
//!
//! This process goes on steadily meanwhile ([`crate::clock`]). What waits is moved in one transaction, which tells the operator
//! too, once for each jump; then the clock is followed. So no turn of issuance sees a time that its rows do not fit to.
//!
//! A clock that is set back while nobody runs is found at the start, by the last time that was noted. Of several control planes on
//! one database each follows its own clock, and the one that orders moves what waits, for it wrote most of that.

use std::time::Duration;

use crate::Parts;
use crate::clock::{JUMP_LEAST_MS, Jump, MINUTE_MS, is_within, rfc3339};
use crate::store::{Store, StoreError, WriteTx, event, lease, meta, waits};
use crate::tasks::issuance;

/// How often both clocks are compared.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long after a clock that was set back what was under way is done.
const STRAGGLERS_AFTER: Duration = Duration::from_secs(3);
/// How often the time is noted for the next start.
const NOTE_EVERY_MS: i64 = MINUTE_MS;
/// Where it stands.
const META_SEEN: &str = "clock_seen_ms";

/// Runs until the control plane ends.
///
/// # Errors
/// None of its own: what fails is done again.
pub async fn run(parts: Parts) -> anyhow::Result<()> {
    let mut noted_at_ms = 0;
    loop {
        if let Err(error) = round(&parts, &mut noted_at_ms).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the clock cannot be looked after; a jump is not followed before what waits is moved"
            );
        }
        tokio::select! {
            () = parts.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

async fn round(parts: &Parts, noted_at_ms: &mut i64) -> Result<(), StoreError> {
    let Some(jump) = parts.clock.jump() else { return note(parts, noted_at_ms).await };
    let tx = moved(parts, jump, parts.clock.now_ms()).await?;
    // Before another writer's turn: whoever reads the time within a transaction reads the one that its rows are of.
    parts.clock.follow(jump);
    if let Err(error) = tx.commit().await {
        parts.clock.follow(Jump { by_ms: -jump.by_ms });
        return Err(error);
    }
    crate::metrics::clock_jumped();
    if jump.by_ms < 0 {
        tokio::select! {
            () = parts.shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(STRAGGLERS_AFTER) => {}
        }
        stragglers(parts, -jump.by_ms).await?;
    }
    Ok(())
}

/// Moves what waits, and tells of it. `before_ms`: what the clock says without the jump.
async fn moved(parts: &Parts, jump: Jump, before_ms: i64) -> Result<WriteTx, StoreError> {
    let after_ms = before_ms.saturating_add(jump.by_ms);
    let mut tx = parts.store.begin().await?;
    if is_ours(&mut tx, parts).await? {
        if jump.by_ms < 0 {
            waits::bring_back(&mut tx, -jump.by_ms, after_ms).await?;
        } else {
            waits::keep_spent(&mut tx, jump.by_ms, before_ms).await?;
        }
    }
    let (from, to) = (rfc3339(before_ms), rfc3339(after_ms));
    let seconds = jump.by_ms.unsigned_abs() / 1000;
    let how = if jump.by_ms < 0 {
        format!("back by {seconds} s, from {from} to {to}: what waits was moved along")
    } else {
        format!(
            "forward by {seconds} s, from {from} to {to}, or did not run meanwhile: what was spent of CAs' limits still counts"
        )
    };
    let text = format!("the clock of this control plane has jumped {how}; look at its time service");
    tracing::error!(seconds, text, "the clock has jumped");
    event::append(&mut tx, "clock.jumped", None, &parts.replica, &text, after_ms).await?;
    if !parts.store.is_shared() {
        meta::put(&mut tx, META_SEEN, &after_ms.to_string()).await?;
    }
    Ok(tx)
}

/// What was read off the clock just before it was followed may have been written just after.
async fn stragglers(parts: &Parts, by_ms: i64) -> Result<(), StoreError> {
    let mut tx = parts.store.begin().await?;
    if is_ours(&mut tx, parts).await? {
        // Others that wait for so long are few, and end earlier once.
        let after_ms = parts.clock.now_ms() + by_ms - JUMP_LEAST_MS;
        waits::bring_back(&mut tx, by_ms, after_ms).await?;
    }
    tx.commit().await
}

async fn is_ours(tx: &mut WriteTx, parts: &Parts) -> Result<bool, StoreError> {
    Ok(!parts.store.is_shared() || lease::is_holder(tx, issuance::WORK, &parts.replica).await?)
}

/// Moves what waits if the clock was set back since the last run; before anything of this one reads the time.
///
/// # Errors
/// The database's.
pub async fn since_last_run(parts: &Parts) -> Result<(), StoreError> {
    let Some(seen_ms) = noted(&parts.store).await? else { return Ok(()) };
    let by_ms = parts.clock.now_ms() - seen_ms;
    if by_ms > -JUMP_LEAST_MS {
        return Ok(());
    }
    moved(parts, Jump { by_ms }, seen_ms).await?.commit().await?;
    crate::metrics::clock_jumped();
    Ok(())
}

async fn noted(store: &Store) -> Result<Option<i64>, StoreError> {
    // Others go on by their own clocks.
    if store.is_shared() {
        return Ok(None);
    }
    let text = meta::find(&mut *store.read().await?, META_SEEN).await?;
    Ok(text.and_then(|text| text.parse().ok()))
}

async fn note(parts: &Parts, noted_at_ms: &mut i64) -> Result<(), StoreError> {
    let now_ms = parts.clock.now_ms();
    if parts.store.is_shared() || is_within(NOTE_EVERY_MS, *noted_at_ms, now_ms) {
        return Ok(());
    }
    let mut tx = parts.store.begin().await?;
    meta::put(&mut tx, META_SEEN, &now_ms.to_string()).await?;
    tx.commit().await?;
    *noted_at_ms = now_ms;
    Ok(())
}
