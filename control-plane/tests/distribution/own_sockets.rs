//! Where Portico itself is: no origin on any edge, and the API says so.

use portico_api::distribution::{Fleet, ResourceKind};
use prost::Message;

use crate::plane::Plane;

#[tokio::test(flavor = "multi_thread")]
async fn what_edges_listen_on_and_the_control_planes_sockets_are_denied_to_tenants_of_the_whole_fleet() {
    let plane = Plane::start_with("[fleet]\npublic_addresses = [\"192.0.2.9\"]").await;
    let (one, two) = (plane.edge("default").await, plane.edge("other").await);
    let distribution = plane.distribution().address.to_string();
    let listeners = ["192.0.2.7:443", "[2001:db8::7]:443", "0.0.0.0:80", "127.0.0.1:9109", "nonsense"];
    one.say_status(&listeners).await;
    two.wait("the new policy", |state| {
        let fleet = state.resource(ResourceKind::Fleet, "fleet").unwrap();
        let policy = Fleet::decode(fleet.body.clone()).unwrap();
        let has = |cidr: &str| policy.denied_cidrs.iter().any(|denied| denied == cidr);
        has("192.0.2.7/32")
            && has("2001:db8::7/128")
            && has("192.0.2.9/32")
            && !has("0.0.0.0/32")
            && !has("127.0.0.1/32")
            && ["0.0.0.0:80", "127.0.0.1:9109", &distribution]
                .iter()
                .all(|own| policy.denied_sockets.iter().any(|denied| denied == own))
    })
    .await;
    plane.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_refuses_what_edges_refuse_and_nothing_else_on_their_addresses() {
    let plane = Plane::start().await;
    let (tenant, edge) = (plane.tenant(&[]).await, plane.edge("default").await);
    edge.say_status(&["192.0.2.7:443", "127.0.0.1:9109"]).await;
    edge.wait("the new policy", |state| {
        let fleet = state.resource(ResourceKind::Fleet, "fleet").unwrap();
        !Fleet::decode(fleet.body.clone()).unwrap().denied_cidrs.is_empty()
    })
    .await;
    let api = plane.api();
    let grant = async |cidr: &str, ports: &[u16]| {
        let patch = serde_json::json!({ "egress_grants": [{ "cidr": cidr, "ports": ports }] });
        api.patch_tenant(tenant, &patch, Some(1)).await.map_err(|error| format!("{error:?}"))
    };
    for (cidr, port) in [("127.0.0.1/32", 9109), ("127.0.0.0/8", 9109), ("192.0.2.7/32", 8080)] {
        let refused = grant(cidr, &[port]).await.unwrap_err();
        assert!(
            refused.contains("own_address") && refused.contains("belongs to Portico itself"),
            "{refused}"
        );
    }
    grant("127.0.0.1/32", &[9501]).await.expect("another port of that address is the operator's to grant");
    let domain = async |hostname: &str, origin: &str| {
        let route = serde_json::json!({ "action": { "type": "proxy", "origin": origin } });
        let spec = serde_json::json!({ "hostname": hostname, "routes": [route] });
        let spec = serde_json::from_value(spec).unwrap();
        api.create_domain(tenant, &spec).await.map_err(|error| format!("{error:?}"))
    };
    domain("a.example", "http://127.0.0.1:9501").await.expect("it is granted");
    for (hostname, origin) in [("b.example", "http://127.0.0.1:9109"), ("c.example", "http://192.0.2.7:8080")]
    {
        let refused = domain(hostname, origin).await.unwrap_err();
        assert!(refused.contains("origin_own"), "{refused}");
    }
    plane.shutdown().await;
}
