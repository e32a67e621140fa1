//! `/v1/renewals`: how renewals stand, and how far a mass replacement is.

use axum::extract::State;
use portico_api::v1::RenewalsReport;

use super::call::OperatorCall;
use super::fault::Answered;
use crate::app::App;
use crate::clock::rfc3339;
use crate::store::renewals::{self, RECENT_MS, Standing};

/// Shows how many certificates are due, late or expired, and at the present pace when those that are due are replaced.
#[utoipa::path(get, path = "/v1/renewals", tag = "certificates", responses((status = 200, body = RenewalsReport)))]
pub(super) async fn show(
    State(app): State<App>,
    _call: OperatorCall,
) -> Answered<axum::Json<RenewalsReport>> {
    let now = app.parts.clock.now_ms();
    let standing = renewals::standing(&mut *app.parts.store.read().await?, now).await?;
    Ok(axum::Json(report(&standing, now)))
}

fn report(standing: &Standing, now: i64) -> RenewalsReport {
    let pace = i64::try_from(standing.replaced_recently).unwrap_or(i64::MAX);
    let due = i64::try_from(standing.due).unwrap_or(i64::MAX);
    let done_at = (due > 0 && pace > 0).then(|| now.saturating_add(due.saturating_mul(RECENT_MS) / pace));
    RenewalsReport {
        live: standing.live,
        by_ari: standing.by_ari,
        due: standing.due,
        overdue: standing.overdue,
        late: standing.late,
        expired: standing.expired,
        first_deadline: standing.first_deadline.map(rfc3339),
        orders: standing.orders,
        replaced_15min: standing.replaced_recently,
        done_at: done_at.map(rfc3339),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_follows_from_the_pace() {
        let standing = Standing { live: 100, due: 60, replaced_recently: 30, ..Standing::default() };
        assert_eq!(report(&standing, 0).done_at.as_deref(), Some("1970-01-01T00:30:00Z"));
        let standing = Standing { replaced_recently: 0, ..standing };
        assert_eq!(report(&standing, 0).done_at, None);
        assert_eq!(report(&Standing { replaced_recently: 9, ..Standing::default() }, 0).done_at, None);
    }
}
