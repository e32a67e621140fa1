//! An origin in this process: every path is a page of the same size that caches may keep.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

/// Longer than any run.
const FRESH: &str = "max-age=86400";

/// Serves until the process ends.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<HashMap<String, u64>>>,
}

impl Origin {
    /// Each answer has `page_bytes`.
    pub(crate) fn start(page_bytes: usize) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let origin = Self { address: listener.local_addr()?, asked: Arc::default() };
        let serving = origin.clone();
        let page = Bytes::from(vec![b'x'; page_bytes]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            LocalSet::new().block_on(&runtime, serving.serve(listener, page));
        });
        Ok(origin)
    }

    /// Requests that came for `host`, its port left away.
    pub(crate) fn asked_for(&self, host: &str) -> u64 {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied().unwrap_or(0)
    }

    async fn serve(self, listener: std::net::TcpListener, page: Bytes) {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        while let Ok((stream, _)) = listener.accept().await {
            let (origin, page) = (self.clone(), page.clone());
            let answer = service_fn(move |request: Request<Incoming>| {
                origin.note(&request);
                std::future::ready(answer(page.clone()))
            });
            let _nodelay = stream.set_nodelay(true);
            tokio::task::spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    }

    fn note(&self, request: &Request<Incoming>) {
        let host =
            request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default().to_owned();
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner).entry(host).or_default() += 1;
    }
}

fn answer(page: Bytes) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(page));
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static(FRESH));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    Ok(response)
}
