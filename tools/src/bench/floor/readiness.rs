//! Moving blocks as the data plane does: tokio tells when a socket is ready, and then it is used.

use std::io::{self, IoSlice};
use std::net::TcpStream;

use tokio::io::AsyncReadExt as _;
use tokio::runtime::{Builder, Runtime};

use crate::failure::{Context, Result, fail};

use super::{Block, Sink};

pub(super) fn send(to: TcpStream, pool: &[Block], blocks: u64) -> Result<()> {
    runtime()?.block_on(async {
        let to = adopt(to)?;
        for block in pool.iter().cycle().take(blocks as usize) {
            let mut parts = [IoSlice::new(&block.checksums), IoSlice::new(&block.data)];
            let mut left = &mut parts[..];
            while !left.is_empty() {
                match to.try_write_vectored(left) {
                    Ok(0) => return fail("cannot send: the receiver is gone"),
                    Ok(sent) => IoSlice::advance_slices(&mut left, sent),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        to.writable().await.context("cannot send")?;
                    }
                    Err(error) => return Err(error).context("cannot send"),
                }
            }
        }
        Ok(())
    })
}

pub(super) fn receive(from: TcpStream, blocks: u64) -> Result<()> {
    runtime()?.block_on(async {
        let mut from = adopt(from)?;
        let mut sink = Sink::new();
        for _ in 0..blocks {
            let (sums, data) = sink.room();
            from.read_exact(sums).await.context("cannot receive")?;
            from.read_exact(data).await.context("cannot receive")?;
            sink.check()?;
        }
        Ok(())
    })
}

fn runtime() -> Result<Runtime> {
    let built = Builder::new_current_thread().enable_io().build();
    built.context("cannot start a runtime")
}

fn adopt(stream: TcpStream) -> Result<tokio::net::TcpStream> {
    let adopted = stream.set_nonblocking(true);
    let adopted = adopted.and_then(|()| tokio::net::TcpStream::from_std(stream));
    adopted.context("cannot wait for a socket")
}
