//! grpcio on both sides of the edge, its origin with and without TLS.

use crate::edge::{Edge, HOST, identity};
use crate::python;

#[tokio::test]
async fn grpc_calls_of_every_kind_pass() {
    let Some(python) = python::interpreter("gRPC with grpcio") else { return };
    for (io, tls) in [("auto", false), ("epoll", true)] {
        let (folder, identity) = identity();
        let files = [&identity.certificate, &identity.key];
        let (_origin, ports) = python::serves(&python, "grpc_origin.py", &files, folder.path()).await;
        let to_origin = if tls {
            let trust = format!("server_name = \"in.example\"\nca_file = {:?}", identity.ca);
            format!("proxy = \"https://127.0.0.1:{}\"\nprotocol = \"http2\"\n{trust}", ports[1])
        } else {
            format!("proxy = \"http://127.0.0.1:{}\"\nprotocol = \"http2\"", ports[0])
        };
        let away = portico_ports::reserve();
        let routes = format!(
            "[[route]]\nhost = \"{HOST}\"\npath = \"/test.Peer\"\n{to_origin}\n\
             [[route]]\nhost = \"{HOST}\"\npath = \"/test.Away\"\nproxy = \"http://{away}\"\nprotocol = \"http2\"\n"
        );
        let ports = [ports[0], ports[1], away.port()];
        let edge = Edge::start(io, folder, identity, &routes, &ports).await;
        let args = [
            edge.https.ip().to_string(),
            edge.https.port().to_string(),
            HOST.to_owned(),
            edge.identity.ca.to_str().unwrap().to_owned(),
        ];
        let checks = [
            "unary_calls_with_metadata_both_ways",
            "streams_of_each_kind",
            "messages_of_no_byte_and_of_many",
            "each_status_comes_as_the_origin_gave_it",
            "what_the_edge_refuses_is_a_status_too",
            "a_deadline_ends_the_call_on_both_sides",
            "a_cancelled_call_is_cancelled_at_the_origin",
            "a_client_that_is_gone_cancels_its_calls",
            "many_calls_at_once_on_one_connection",
        ];
        python::holds(&python, "grpc_client.py", &args, &checks).await;
        assert_eq!(edge.metric("portico_edge_panics_total").await, 0.0);
    }
}
