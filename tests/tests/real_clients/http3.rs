//! aioquic, Python's QUIC and HTTP/3.

use crate::edge::{Edge, HOST, identity};
use crate::{origin, python};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aioquic_is_served_over_http3() {
    let Some(python) = python::interpreter("HTTP/3 with aioquic") else { return };
    let origin = origin::start().await;
    let (folder, identity) = identity();
    let routes = format!("[[route]]\nhost = \"{HOST}\"\nproxy = \"http://{}\"\n", origin.address);
    let edge = Edge::start("auto", folder, identity, &routes, &[origin.address.port()]).await;
    let (address, port) = (edge.https.ip().to_string(), edge.https.port().to_string());
    let args = [address.as_str(), port.as_str(), HOST, edge.identity.ca.to_str().unwrap()];
    let checks = [
        "get_head_and_post",
        "large_bodies_both_ways",
        "trailers_both_ways",
        "many_requests_at_once",
        "clients_whose_port_changes_stay_with_their_worker",
        "keys_are_updated",
        "another_version_is_negotiated",
        "an_unknown_version_is_told_what_there_is",
        "a_session_is_resumed_without_early_data",
        "websocket_over_http3_is_refused_and_the_connection_goes_on",
        "clients_show_their_address_while_many_handshakes_are_open",
    ];
    python::holds(&python, "http3_client.py", &args, &checks).await;
    assert!(edge.metric("portico_edge_quic_retries_total").await >= 1.0);
    assert_eq!(edge.metric("portico_edge_handshakes_total{result=\"resumed\"}").await, 1.0);
    assert_eq!(edge.metric("portico_edge_panics_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aioquic_sends_early_data_where_a_name_takes_it() {
    let Some(python) = python::interpreter("early data with aioquic") else { return };
    let origin = origin::start().await;
    let (folder, identity) = identity();
    let routes = format!(
        "[[tls]]\nhost = \"{HOST}\"\nearly_data = true\n[[route]]\nhost = \"{HOST}\"\nproxy = \"http://{}\"\n",
        origin.address
    );
    let edge = Edge::start("auto", folder, identity, &routes, &[origin.address.port()]).await;
    let (address, port) = (edge.https.ip().to_string(), edge.https.port().to_string());
    let args = [address.as_str(), port.as_str(), HOST, edge.identity.ca.to_str().unwrap(), "early"];
    let checks = [
        "a_safe_request_is_served_as_early_data",
        "an_unsafe_request_waits_for_the_handshake",
        "a_ticket_is_good_for_early_data_once",
    ];
    python::holds(&python, "http3_client.py", &args, &checks).await;
    let early = async |result: &str| {
        edge.metric(&format!("portico_edge_early_requests_total{{result=\"{result}\"}}")).await
    };
    // On a slow machine a handshake may be over before its request is looked at.
    assert!(early("served").await >= 1.0);
    assert!(early("served").await + early("waited").await <= 3.0);
    assert_eq!(edge.metric("portico_edge_panics_total").await, 0.0);
}
