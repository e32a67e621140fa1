//! A successor that hangs leaves the running edge serving.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use portico_edge::config::{ListenerConfig, ListenerKind};
use portico_edge::handover::{Giver, Shared, serve};
use portico_edge::limits::Deadlines;
use portico_edge::listen::quic::QuicProcess;
use portico_edge::listen::{Inherited, bind_or_adopt_all};
use tokio::task::LocalSet;

use crate::client::{https, runtime};
use crate::endings::{NEVER, SHORT};
use crate::harness::{PATIENCE, Setup, TestEdge, on_each_backend};

const HOST: &str = "shop.example";

/// Hands over at `path`, for as long as the test binary runs.
fn hand_over_at(path: &Path, edge: &TestEdge) {
    let config = ListenerConfig {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        kind: ListenerKind::Http,
        public_https_port: 443,
        http3: false,
        proxy_protocol: None,
        trusted_proxies: None,
    };
    let process = Arc::new(QuicProcess::generate().unwrap());
    let bound = bind_or_adopt_all(&[config], 1, &mut Inherited::default(), &process).unwrap();
    let shared = Shared::of(&bound, &process, None).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (edge, switch) = (Arc::clone(&edge.edge), edge.switch.clone());
    std::thread::spawn(move || {
        let giver = Giver {
            edge,
            shared,
            control: None,
            switch,
            metrics: RefCell::new(None),
            last_steps: Rc::default(),
        };
        LocalSet::new().block_on(&runtime(), async {
            serve(tokio::net::UnixListener::from_std(listener).unwrap(), Rc::new(giver)).await;
        });
    });
}

struct Successor(UnixStream);

impl Successor {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn say(&mut self, message: &str) {
        self.0.write_all(&u32::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
        self.0.write_all(message.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> serde_json::Value {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut text = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
        self.0.read_exact(&mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn hears_that_it_is_late(&mut self) -> bool {
        self.hear()["Refused"].as_str().is_some_and(|text| text.contains("gone or silent"))
    }
}

const TAKE_OVER: &str = r#"{"TakeOver":{"version":1,"build":"test"}}"#;

#[test]
fn a_successor_that_is_silent_at_any_step_is_refused_and_the_edge_serves_on() {
    on_each_backend(|backend| {
        for (take_over, take_over_step) in [(NEVER, SHORT), (SHORT, NEVER)] {
            let deadlines = Deadlines { take_over, take_over_step, ..Deadlines::default() };
            let mut edge = TestEdge::with(backend, Setup { deadlines, ..Setup::default() });
            edge.serve(&[HOST]);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("take-over");
            hand_over_at(&path, &edge);
            if take_over_step == SHORT {
                assert!(Successor::connect(&path).hears_that_it_is_late(), "before its first word");
            }
            let mut successor = Successor::connect(&path);
            successor.say(TAKE_OVER);
            assert!(successor.hear()["Offer"].is_object());
            // The sockets come with one byte.
            successor.0.read_exact(&mut [0; 1]).unwrap();
            if take_over_step == SHORT {
                successor.say(r#""Ready""#);
                assert_eq!(successor.hear(), "Yours");
            }
            assert!(successor.hears_that_it_is_late(), "after its last word");
            assert_eq!(https(edge.https, HOST).get(HOST, "/").status, 200);
        }
    });
}
