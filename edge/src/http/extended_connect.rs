//! WebSocket over HTTP/2 (RFC 8441): an extended CONNECT is the GET with `Upgrade` that HTTP/1.1 has for it, and is treated as
//! such from here on; an origin's 101 is a 200 to the client, whose stream is the tunnel then.

use std::rc::Rc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Version, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::{body::ResponseBody, clock::ConnectionClock};
use crate::{
    exchange::ConnectionContext,
    upstream::tunnel::{self, TunnelOffer},
};

/// Marks a request that was one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExtendedConnect;

/// The client's end of a tunnel that may come of a request, counted while it lives.
pub(super) struct ClientHalf {
    upgrade: OnUpgrade,
    place: TunnelPlace,
}

/// While it lives the connection is not idle.
struct TunnelPlace(Rc<ConnectionClock>);

impl Drop for TunnelPlace {
    fn drop(&mut self) {
        self.0.tunnel_ends();
    }
}

/// What a client of HTTP/1.1 would ask with. None: it is no such request.
pub(super) fn translate(parts: &mut Parts, context: &ConnectionContext) -> Option<ClientHalf> {
    let protocol =
        parts.extensions.get::<hyper::ext::Protocol>().filter(|_| parts.method == Method::CONNECT)?;
    if !protocol.as_ref().eq_ignore_ascii_case(b"websocket") {
        return None;
    }
    let upgrade = parts.extensions.remove::<OnUpgrade>()?;
    let mut key = [0; 16];
    aws_lc_rs::rand::fill(&mut key).ok()?;
    let key = HeaderValue::try_from(BASE64_STANDARD.encode(key)).expect("base64 is a header value");
    parts.method = Method::GET;
    parts.version = Version::HTTP_11;
    parts.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(header::SEC_WEBSOCKET_KEY, key);
    parts.extensions.insert(ExtendedConnect);
    context.clock.tunnel_begins();
    Some(ClientHalf { upgrade, place: TunnelPlace(Rc::clone(&context.clock)) })
}

impl ClientHalf {
    /// Makes the answer one to CONNECT, and runs the tunnel if there is to be one.
    pub(super) fn conclude(self, answer: &mut Response<ResponseBody>, context: &ConnectionContext) {
        let Some(offer) = answer.extensions_mut().remove::<TunnelOffer>() else {
            // To the client this would say that there is a tunnel.
            if answer.status().is_success() {
                *answer.status_mut() = StatusCode::BAD_GATEWAY;
            }
            return;
        };
        *answer.status_mut() = StatusCode::OK;
        for name in [header::UPGRADE, header::CONNECTION, header::SEC_WEBSOCKET_ACCEPT] {
            answer.headers_mut().remove(name);
        }
        let worker = Rc::clone(&context.worker);
        let Self { upgrade, place } = self;
        tokio::task::spawn_local(async move {
            match upgrade.await {
                Ok(stream) => {
                    Box::pin(tunnel::run(TokioIo::new(stream), Bytes::new(), offer, &worker)).await;
                }
                Err(_) => offer.decline(&worker), // the client has gone
            }
            drop(place);
        });
    }
}
