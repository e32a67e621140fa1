//! Figures of usage: each report is added once, and what cannot be read harms no other figure.

use portico_api::distribution::{EdgeMessage, Usage, UsageReport, edge_message};
use portico_api::v1::UsageBy;
use portico_api::v1::client::UsageQuery;
use portico_cert_store::DomainId;

use crate::plane::Plane;

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_comes_again_is_acknowledged_and_not_added() {
    let plane = Plane::start().await;
    let tenant = plane.tenant(&[]).await;
    let edge = plane.edge("default").await;
    let hour = plane.clock.now_ms().unsigned_abs() / 3_600_000;
    let row = |name: &str, hour, requests| Usage {
        tenant_id: tenant.to_string(),
        domain_id: DomainId::generate().to_string(),
        name: name.to_owned(),
        hour,
        requests,
        ..Usage::default()
    };
    let good = row("a.example", hour, 5);
    let rows = vec![
        good.clone(),
        row("not a name", hour, 7),
        row("b.example", hour + 1000, 11),
        row("c.example", hour, u64::MAX),
        Usage { tenant_id: "nobody".to_owned(), ..row("d.example", hour, 13) },
    ];
    let series = bytes::Bytes::from_static(b"0123456789abcdef");
    let report = |number, rows| UsageReport { series: series.clone(), number, rows };
    for report in [report(1, rows.clone()), report(1, rows), report(2, vec![good])] {
        let message = EdgeMessage { kind: Some(edge_message::Kind::Usage(report)) };
        edge.outgoing.send(message).await.unwrap();
    }
    edge.wait("three answers", |state| state.usage_acks.len() == 3).await;
    let numbers = edge.with(|state| state.usage_acks.iter().map(|ack| ack.number).collect::<Vec<_>>());
    assert_eq!(numbers, [1, 1, 2]);
    let query = UsageQuery { by: vec![UsageBy::Domain, UsageBy::Hour], ..UsageQuery::default() };
    let sums = plane.api().usage(&query, None, None).await.unwrap().items;
    let [sum] = sums.as_slice() else { panic!("{sums:?}") };
    assert_eq!((sum.domain.as_deref(), sum.requests), (Some("a.example"), 10));

    let too_large = report(3, vec![Usage::default(); portico_api::distribution::USAGE_ROWS_MAX + 1]);
    let message = EdgeMessage { kind: Some(edge_message::Kind::Usage(too_large)) };
    edge.outgoing.send(message).await.unwrap();
    edge.wait("the end of a stream that breaks the protocol", |state| state.ended.is_some()).await;
    plane.shutdown().await;
}
