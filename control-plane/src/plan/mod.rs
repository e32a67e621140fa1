//! Deciding what to order, when, and for which names together: pure functions over what the store holds.
//!
//! - [`backups`]: which names have a certificate of another issuer standing by.
//! - [`caa`]: whether a name's CAA records let a CA issue.
//! - [`reconcile`]: from domains, groups, lineages and past failures to changes of groups and orders that are due.
//! - [`issuers`]: which issuer gets an order.
//! - [`presence`]: whether a served name still leads here.
//! - [`ledger`]: whether a CA's published limits leave room for one more order, and when.
//! - [`report`]: the plan for people, also under other settings.
//! - [`renewal_info`]: what to make of the moment that a CA suggests for a renewal.
//! - [`levelling`]: renewals before they are due, so that they are as many in each hour.
//! - [`timing`]: back-off after a failure, and when a certificate is due for renewal.
//!
//! No clock, no store, no network: `now` is an argument. The task that reads, acts and records is `tasks::issuance`.

pub mod backups;
pub mod caa;
pub mod cells;
pub mod issuers;
pub mod ledger;
pub mod levelling;
pub mod presence;
pub mod reconcile;
pub mod rekey;
pub mod renewal_info;
pub mod report;
pub mod timing;
