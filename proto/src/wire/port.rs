//! One port for two protocols: a connection's first byte tells which one it speaks.
//!
//! Clients send frames ([`super::metadata`]), which begin with `E`; storage servers, tools and streams use gRPC,
//! whose HTTP/2 begins with `P`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

/// Longest wait for that byte.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// Connections that have not sent it yet; further ones are closed at once.
const UNDECIDED: usize = 1024;
/// Connections that wait for their protocol's server.
const BACKLOG: usize = 64;

/// A connection, and who is at its other end.
pub type Accepted = (TcpStream, SocketAddr);

/// Which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Frames,
    Grpc,
}

impl Protocol {
    fn of(first: u8) -> Option<Self> {
        match first {
            b'E' => Some(Self::Frames),
            b'P' => Some(Self::Grpc),
            _ => None,
        }
    }
}

/// Both kinds of a listener's connections.
pub struct Split<A> {
    /// For [`super::server::serve`].
    pub frames: mpsc::Receiver<Accepted>,
    /// For a gRPC server.
    pub grpc: mpsc::Receiver<io::Result<TcpStream>>,
    /// Accepts them for as long as it is polled; holds the listener, and never ends.
    pub accepting: A,
}

/// See the module.
pub fn split(listener: TcpListener) -> Split<impl Future<Output = ()> + Send> {
    let (frames, from_frames) = mpsc::channel(BACKLOG);
    let (grpc, from_grpc) = mpsc::channel(BACKLOG);
    let accept = async move {
        let undecided = Arc::new(Semaphore::new(UNDECIDED));
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, or the connection died in the queue: neither ends the server.
                    tracing::warn!(%error, "accept failed");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let Ok(place) = undecided.clone().try_acquire_owned() else {
                tracing::warn!(%peer, "connection refused: {UNDECIDED} others have sent nothing yet");
                continue;
            };
            let (frames, grpc) = (frames.clone(), grpc.clone());
            tokio::spawn(async move {
                let first = tokio::time::timeout(FIRST_BYTE, protocol(&stream)).await;
                // Whoever does not take it any more is stopping.
                match first {
                    Ok(Ok(Some(Protocol::Frames))) => drop(frames.send((stream, peer)).await),
                    Ok(Ok(Some(Protocol::Grpc))) => drop(grpc.send(Ok(stream)).await),
                    Ok(Ok(None)) => {
                        tracing::debug!(%peer, "connection closed: it speaks no known protocol");
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "connection lost"),
                    Err(_) => tracing::debug!(%peer, "connection closed: it sent nothing"),
                }
                drop(place);
            });
        }
    };
    Split {
        frames: from_frames,
        grpc: from_grpc,
        accepting: accept,
    }
}

async fn protocol(stream: &TcpStream) -> io::Result<Option<Protocol>> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    let len = stream.peek(&mut first).await?;
    Ok((len > 0).then(|| Protocol::of(first[0])).flatten())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_first_byte_decides_and_stays_in_the_stream() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let Split {
            mut frames,
            mut grpc,
            accepting,
        } = split(listener);
        let accepting = tokio::spawn(accepting);
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut clients = Vec::new();
        for hello in [b"EMFS", b"PRI ", b"GET "] {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(hello).await.unwrap();
            clients.push(client);
        }
        let mut found = [0; 4];
        let (mut stream, _) = frames.recv().await.unwrap();
        stream.read_exact(&mut found).await.unwrap();
        assert_eq!(&found, b"EMFS");
        let mut stream = grpc.recv().await.unwrap().unwrap();
        stream.read_exact(&mut found).await.unwrap();
        assert_eq!(&found, b"PRI ");
        let unknown = &mut clients[2];
        assert!(matches!(unknown.read(&mut found).await, Ok(0) | Err(_)));
        silent.write_all(b"EMFS").await.unwrap();
        assert!(frames.recv().await.is_some(), "others did not wait for it");
        accepting.abort();
    }
}
