//! The Python package websockets on both sides of the edge.

use crate::edge::{Edge, HOST, identity};
use crate::python;

#[tokio::test]
async fn websockets_are_passed_through_whole() {
    let Some(python) = python::interpreter("WebSocket with the package websockets") else { return };
    for io in ["auto", "epoll"] {
        let (folder, identity) = identity();
        let (_origin, ports) =
            python::serves::<&str>(&python, "websocket_origin.py", &[], folder.path()).await;
        // Compression by the edge must leave them alone.
        let routes = format!(
            "[[route]]\nhost = \"{HOST}\"\npath = \"/nowhere-else\"\nstatic_body = \"none\"\nstatus = 404\n\
             [[route]]\nhost = \"{HOST}\"\nproxy = \"http://127.0.0.1:{}\"\nplain_http = true\ncompression = {{}}\n",
            ports[0]
        );
        let edge = Edge::start(io, folder, identity, &routes, &ports).await;
        let args = [
            edge.https.ip().to_string(),
            edge.https.port().to_string(),
            edge.http.port().to_string(),
            HOST.to_owned(),
            edge.identity.ca.to_str().unwrap().to_owned(),
        ];
        let checks = [
            "text_and_bytes_with_and_without_tls",
            "the_origin_hears_who_asks_and_agrees_on_a_subprotocol",
            "compression_is_between_both_ends",
            "large_messages_whole_and_in_fragments",
            "pings_are_answered_by_the_other_end",
            "close_codes_reach_the_other_end",
            "a_client_that_is_gone_is_gone_for_the_origin_too",
            "many_at_once",
            "what_is_no_handshake_is_refused",
        ];
        python::holds(&python, "websocket_client.py", &args, &checks).await;
        assert_eq!(edge.metric("portico_edge_panics_total").await, 0.0);
    }
}
