//! Bounds of the control plane, each with its reason. Each is named by the test that hits it.

use std::time::Duration;

use crate::clock::DAY_MS;

/// On PostgreSQL, how long a transaction that writes may idle. It never waits for anything but the database, so one that idles
/// for so long belongs to a process that hangs, and holds up all others: the server ends it. Less than a term lasts
/// (`store/lease.rs`), so that the next holder does not wait for it.
pub const WRITER_IDLE_MAX: Duration = Duration::from_secs(10);

/// Writes of one tenant that stand in the writer's queue, the one at work included: another tenant's call has so many of them before
/// it at most. More wait for a place, in a line of the tenant's own.
pub const WRITERS_OF_TENANT_MAX: usize = 4;
/// How long a call waits in that line: as long as in the writer's queue (`store/mod.rs`). How many wait, the tenant's pace bounds.
pub const WRITERS_OF_TENANT_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long one bulk call of a tenant may have the writer. 5,000 names take 0.7 s; names whose documents are large take longer.
/// Four such calls are over before another tenant's call has waited for 30 s and is told that the writer is busy.
pub const WRITER_TURN_OF_TENANT_MAX: Duration = Duration::from_secs(5);

/// Orders that run at the same time: each waits for its CA most of the time, and the CA's own limits are far below what these
/// can do.
pub const ORDERS_IN_FLIGHT_MAX: usize = 32;
/// Of them, of one tenant: how long one takes is the tenant's name servers' and origins' to say too, and a slot is not taken
/// back from an order that runs.
pub const ORDERS_OF_TENANT_IN_FLIGHT_MAX: usize = 24;
/// Of them, such as are pressing, as long as others could run: a revocation of all must not stop what is new.
pub const PRESSING_ORDERS_IN_FLIGHT_MAX: usize = 24;

/// Cells that one name is served by: each has a key of its own and a certificate of exactly the same names, of which CAs issue a
/// handful a week; what theirs bear may be less (`plan/cells.rs`).
pub const CELLS_OF_NAME_MAX: usize = 8;

/// Chains and sealed keys of the certificates that one tenant has uploaded, in all its cells together, bytes: some 8,000 of them.
/// All are in every backup, and each edge of a cell holds those of the cell.
pub const UPLOADED_BYTES_OF_TENANT_MAX: u64 = 64 << 20;

/// Requests of one tenant whose certificates have not come: one for each certificate that it orders itself, and its CA issues that
/// within minutes.
pub const CERTIFICATE_REQUESTS_OF_TENANT_MAX: u64 = 100;
/// How long the key of such a request waits. A CA that looks at papers takes days; what has not come by then was given up, and
/// a key that nobody needs is a key that can be lost.
pub const CERTIFICATE_REQUEST_LASTS_MS: i64 = 30 * DAY_MS;

/// What an operator notes of a tenant's consent, bytes: a sentence or two, kept for ever in the trail.
pub const CONSENT_NOTE_BYTES_MAX: usize = 1000;

/// Writes of DNS records of one zone at the same time; others wait. Servers take updates of a zone one after the other.
pub const DNS_WRITES_IN_FLIGHT_MAX: usize = 8;
/// Of them, of one order: one with many names must not have all the turns.
pub const DNS_WRITES_OF_ORDER_IN_FLIGHT_MAX: usize = 4;
/// Of them, of what is taken down: nobody waits for that.
pub const DNS_REMOVALS_IN_FLIGHT_MAX: usize = 2;
/// One write, from its turn on: whoever takes longer is away, and the order is tried again later.
pub const DNS_WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// All writes of one order, with the waits for their turns: an order that waits holds a slot that others could have.
pub const DNS_RECORDS_DEADLINE: Duration = Duration::from_secs(120);
/// Until the servers of a zone show a record that was written: what takes longer is looked at with the order's next try.
pub const DNS_SHOWN_DEADLINE: Duration = Duration::from_secs(20);
/// What a program or service that writes records says of its failure, bytes: some lines, for the log.
pub const DNS_WRITER_TEXT_MAX: usize = 1024;
/// Records that are left of orders and taken down in one turn: more wait for the next.
pub const DNS_REMOVALS_OF_TURN_MAX: u32 = 256;
/// What one control plane has to tell the others on its database and has not yet written: an urgent message that finds no place
/// counts as not acked by edges that hang elsewhere.
pub const UNTOLD_MAX: usize = 4_096;
/// Urgent messages of other control planes that one look takes, so that what one of them sends in a burst is not all in memory.
pub const RELAYED_PER_LOOK_MAX: usize = 1_000;
/// Urgent messages of other control planes whose answers are passed back; a further one pushes the oldest out, whose sender
/// has stopped waiting long before.
pub const PASSED_ON_MAX: usize = 4_096;
/// How long an order waits until every control plane that lives has said that its DNS responder answers the challenge. Longer
/// than one that has died counts as living (10 s), so that none is waited for in vain.
pub const RESPONDERS_DEADLINE: Duration = Duration::from_secs(15);

/// A certificate request of an edge for a key of its own, bytes: 100 names, each as long as one can be, and room.
pub const CERTIFICATE_REQUEST_BYTES_MAX: usize = 32 << 10;

/// Of an event's text, bytes: some words in it are a stranger's, such as what a name's server answers. Each is kept for 90 days and sent
/// to webhooks, and a page holds 500 of them: 1 MB.
pub const EVENT_TEXT_BYTES_MAX: usize = 2_000;

/// Webhooks of one tenant: each of its events is sent to all that want it.
pub const WEBHOOKS_OF_TENANT_MAX: u64 = 10;
/// Webhooks of the operators.
pub const WEBHOOKS_OF_OPERATORS_MAX: u64 = 50;
/// Kinds that one webhook names; all is shorter.
pub const WEBHOOK_KINDS_MAX: usize = 50;
/// Webhooks that are being sent to at the same time: each takes a connection.
pub const WEBHOOKS_IN_FLIGHT_MAX: usize = 64;
/// Of them, of one tenant: how long one takes is its endpoints' to say, and a turn is not taken back.
pub const WEBHOOKS_OF_TENANT_IN_FLIGHT_MAX: usize = 4;
/// One try to send an event, connect included: a receiver that needs longer should answer first and work then.
pub const WEBHOOK_DEADLINE: Duration = Duration::from_secs(15);
/// Of an endpoint's answer: it is read only so that the connection can be used again.
pub const WEBHOOK_ANSWER_BYTES_MAX: usize = 64 << 10;
/// Tries of one webhook that can be looked at.
pub const WEBHOOK_TRIES_KEPT: u32 = 200;

/// Connections to the distribution port of whom it is not known which edge they are: in their handshake, or about to join. A fleet
/// that reconnects at once has room; each takes some 20 KiB.
pub const DISTRIBUTION_STRANGERS_MAX: usize = 1_024;
/// Of them, of one address: edges may be many behind one.
pub const DISTRIBUTION_STRANGERS_OF_ADDRESS_MAX: usize = 256;

/// TCP connections to the DNS responder. Resolvers come by UDP, and by TCP where an answer was cut.
pub const DNS_CONNECTIONS_MAX: usize = 256;
/// Of them, of one address: a CA's or a provider's resolvers may be many behind one.
pub const DNS_CONNECTIONS_OF_ADDRESS_MAX: usize = 32;
/// A question over TCP, bytes: one name and some options take a few hundred.
pub const DNS_QUESTION_BYTES_MAX: usize = 4_096;
