//! The death certificate: a host that refuses a connection to a server's port.
//!
//! A server closes its listener last, after it has stopped serving, and a stopped or partitioned
//! process never refuses: its host's kernel accepts for it, or nothing answers at all. So a
//! refusal proves that the process is gone. Every other outcome proves nothing.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::{TcpStream, lookup_host};

/// A host that is up answers within this; longer waits would only delay the next try.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);

/// Asks whether the port at an address is certainly closed. A parameter, so that tests can answer.
pub(super) type Prober = Arc<dyn Fn(String) -> BoxFuture<'static, bool> + Send + Sync>;

/// The prober that connects.
pub(super) fn tcp() -> Prober {
    Arc::new(|addr| Box::pin(async move { is_refused(&addr).await }))
}

/// Whether every address behind `addr` (`host:port`) refuses a connection.
pub(super) async fn is_refused(addr: &str) -> bool {
    let attempt = async {
        let Ok(addresses) = lookup_host(addr).await else {
            return false;
        };
        let mut refused = false;
        for address in addresses {
            match TcpStream::connect(address).await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused = true,
                _ => return false,
            }
        }
        refused
    };
    tokio::time::timeout(PROBE_TIMEOUT, attempt)
        .await
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_refuses_and_an_open_one_does_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        assert!(!is_refused(&addr).await);
        drop(listener);
        assert!(is_refused(&addr).await);
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_proves_nothing() {
        assert!(!is_refused("no-such-host.invalid:1").await);
    }
}
