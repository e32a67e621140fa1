//! One client connection over TCP, from accept to close.

use std::{net::SocketAddr, rc::Rc};

use crate::{
    config::ListenerKind,
    exchange::{ConnectionContext, Protocol},
    http::{budget::ConnectionBudget, clock::ConnectionClock, drive::Ended, h1, h2},
    io::{SocketWatch, Stream},
    listen::BoundListener,
    proxy_protocol,
    seats::Seat,
    sources::Source,
    tls::{self, Handshake, Shown},
    worker::Worker,
};

/// Serves a connection to its end. Each phase is boxed, so that an idle connection holds no room for a handshake.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    mut stream: Stream,
    peer: SocketAddr,
    bound: &BoundListener,
    seat: &Seat,
) {
    let Ok(local) = stream.local_address() else { return };
    let peer = match &bound.config.proxy_protocol {
        None => peer,
        Some(sources) => {
            let accepting = Box::pin(proxy_protocol::accept(&mut stream, peer, sources, &worker.edge));
            let Some(client) = accepting.await else { return };
            client
        }
    };
    // Dropped where there is none: closed before a byte was read.
    let Ok(source) = worker.edge.sources.connect(peer.ip()) else { return };
    let ended = match bound.config.kind {
        ListenerKind::Http => {
            let watch = stream.watch();
            let context = context(&worker, (peer, local), source, (Protocol::Http1, None), watch, bound);
            seat.serves(&context.clock);
            let _counted = worker.edge.metrics.serves(Protocol::Http1);
            Box::pin(h1::serve(stream, context)).await
        }
        ListenerKind::Https => {
            if source.take_handshake().is_err() {
                return;
            }
            let accepting = tls::accept(stream, &source, &worker.edge);
            let Some(accepted) = Box::pin(accepting).await else { return };
            let tls::Accepted { stream, shown, handshake } = *accepted;
            if handshake.resumed {
                source.handshake_was_resumed();
                source.give_signature_back(shown.credential.key_type());
            }
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let protocol = if h2 { Protocol::Http2 } else { Protocol::Http1 };
            let by_tls = Some((shown, handshake));
            let watch = stream.get_ref().0.watch();
            let context = context(&worker, (peer, local), source, (protocol, by_tls), watch, bound);
            seat.serves(&context.clock);
            let _counted = worker.edge.metrics.serves(protocol);
            if h2 {
                let clock = Rc::clone(&context.clock);
                let ended = Box::pin(h2::serve(stream, context)).await;
                if clock.is_abusive() {
                    worker.edge.metrics.connections_abusive.increment(1);
                }
                ended
            } else {
                Box::pin(h1::serve(stream, context)).await
            }
        }
    };
    if let Ended::Expired(expired) = ended {
        worker.edge.metrics.expired(expired);
    }
}

fn context(
    worker: &Rc<Worker>,
    (peer, local): (SocketAddr, SocketAddr),
    source: Source,
    (protocol, by_tls): (Protocol, Option<(Shown, Handshake)>),
    socket: SocketWatch,
    bound: &BoundListener,
) -> Rc<ConnectionContext> {
    let (shown, handshake) = by_tls.unzip();
    Rc::new(ConnectionContext {
        worker: Rc::clone(worker),
        peer,
        local,
        protocol,
        shown,
        handshake,
        public_https_port: bound.config.public_https_port,
        alt_svc: bound.alt_svc.clone(),
        clock: Rc::new(ConnectionClock::over(socket, worker.edge.deadlines)),
        budget: ConnectionBudget::default(),
        source,
        trusted: bound.config.trusted_proxies.clone(),
        early: None,
    })
}
