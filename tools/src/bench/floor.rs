//! The floor of native reads of data in memory: a sender and a receiver that move the same bytes with the
//! same checksums over loopback, and do nothing else.
//!
//! A block goes as a page of checksums and its bytes, in one vectored write from a pool of blocks. The
//! checksums were made with the pool, as a storage server sends those that it stored. The receiver
//! puts both into buffers that it uses again and verifies each page. Plain threads and blocking sockets: one
//! sender and one receiver per connection, no requests, no tasks, no allocation on the way.
//!
//! The same bytes can be moved by other means, to compare these: tokio's readiness ([`readiness`]), and the
//! completions of io_uring ([`ring`]).

mod readiness;
mod ring;

use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use emberfs_proto::buf::AlignedBuf;
use emberfs_proto::checksum::{fragment_checksums, verify_fragments};
use rustix::time::{ClockId, clock_gettime};

use crate::cli::{FloorArgs, FloorTransport};
use crate::failure::{Context, Failure, Result, fail};

use super::report::BenchReport;
use super::stream::random;
use super::{Meter, Spent};

const BLOCK: usize = 1 << 20;
const PAGE: u32 = 16 << 10;
/// Pages of a block, and so its checksums.
const PAGES: usize = BLOCK / PAGE as usize;
/// Buffers that a receiver fills in turn: together larger than the caches next to a core, as the buffers of an
/// application are.
const BUFFERS: usize = 8;

/// A block as it is sent.
struct Block {
    checksums: [u8; PAGES * 4],
    data: AlignedBuf,
}

impl Block {
    fn new(number: usize) -> Self {
        let mut data = AlignedBuf::new(BLOCK);
        data.copy_from_slice(&random(BLOCK));
        data[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let mut checksums = [0; PAGES * 4];
        for (place, sum) in checksums
            .chunks_exact_mut(4)
            .zip(fragment_checksums(0, &data, PAGE))
        {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        Self { checksums, data }
    }
}

/// Moves `args.size` bytes in all, rounded up to whole blocks per connection.
pub(super) fn run(args: &FloorArgs) -> Result<BenchReport> {
    let blocks = args
        .size
        .div_ceil(u64::from(args.jobs))
        .div_ceil(BLOCK as u64);
    let pool = (args.pool.div_ceil(BLOCK as u64)).min(blocks) as usize;
    let pool: Vec<_> = (0..pool).map(Block::new).collect();
    let mut connections = Vec::new();
    for _ in 0..args.jobs {
        connections.push(pair().context("cannot connect to myself")?);
    }
    let (send, receive) = ends(args.transport);
    let meter = Meter::new();
    let work = || {
        std::thread::scope(|scope| {
            let mut senders = Vec::new();
            let mut receivers = Vec::new();
            for (to, from) in connections {
                let pool = &pool;
                senders.push(scope.spawn(move || timed(|| send(to, pool, blocks))));
                receivers.push(scope.spawn(move || timed(|| receive(from, blocks))));
            }
            let panicked = || Failure::new("a worker thread panicked");
            let all = |threads: Vec<std::thread::ScopedJoinHandle<'_, Result<f64>>>| {
                threads.into_iter().try_fold(0.0, |sum, thread| {
                    Ok::<_, Failure>(sum + thread.join().map_err(|_| panicked())??)
                })
            };
            // A receiver knows what went wrong; its sender only that nobody listens any more.
            let (received, sent) = (all(receivers), all(senders));
            let received = received?;
            Ok((sent?, received))
        })
    };
    let ((sent, received), spent) = meter.time(work)?;
    let bytes = blocks * u64::from(args.jobs) * BLOCK as u64;
    let mut report = BenchReport::new(format!(
        "loopback, checksums verified, nothing else; {}",
        args.transport.describe()
    ));
    for (name, cpu_seconds) in [("send", sent), ("receive", received)] {
        let seconds = spent.seconds;
        let spent = Spent {
            seconds,
            cpu_seconds,
            client_cpu_seconds: if name == "receive" { cpu_seconds } else { 0.0 },
        };
        report.add(name, spent, bytes, bytes / BLOCK as u64, None);
    }
    Ok(report)
}

type Send = fn(TcpStream, &[Block], u64) -> Result<()>;
type Receive = fn(TcpStream, u64) -> Result<()>;

/// How a transport sends and receives.
fn ends(transport: FloorTransport) -> (Send, Receive) {
    match transport {
        FloorTransport::Blocking => (send, receive),
        FloorTransport::Tokio => (readiness::send, readiness::receive),
        FloorTransport::Uring => (ring::send, ring::receive),
        FloorTransport::UringZerocopy => (ring::send_zerocopy, ring::receive),
    }
}

/// Both ends of a connection: for the sender and for the receiver.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to = TcpStream::connect(listener.local_addr()?)?;
    let (from, peer) = listener.accept()?;
    if peer != to.local_addr()? {
        return Err(io::Error::other("somebody else connected"));
    }
    to.set_nodelay(true)?;
    Ok((to, from))
}

/// CPU seconds of this thread, user and system.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let before = now();
    work()?;
    Ok(now() - before)
}

fn send(mut to: TcpStream, pool: &[Block], blocks: u64) -> Result<()> {
    let in_turn = pool.iter().cycle().take(blocks as usize);
    for block in in_turn {
        let mut parts = [IoSlice::new(&block.checksums), IoSlice::new(&block.data)];
        let mut left = &mut parts[..];
        while !left.is_empty() {
            match to.write_vectored(left).context("cannot send")? {
                0 => return fail("cannot send: the receiver is gone"),
                sent => IoSlice::advance_slices(&mut left, sent),
            }
        }
    }
    Ok(())
}

fn receive(mut from: impl Read, blocks: u64) -> Result<()> {
    let mut sink = Sink::new();
    for _ in 0..blocks {
        let (sums, data) = sink.room();
        from.read_exact(sums).context("cannot receive")?;
        from.read_exact(data).context("cannot receive")?;
        sink.check()?;
    }
    Ok(())
}

/// Where blocks arrive.
struct Sink {
    buffers: Vec<AlignedBuf>,
    sums: [u8; PAGES * 4],
    number: usize,
}

impl Sink {
    fn new() -> Self {
        Self {
            buffers: (0..BUFFERS).map(|_| AlignedBuf::zeroed(BLOCK)).collect(),
            sums: [0; PAGES * 4],
            number: 0,
        }
    }

    /// For the checksums and the bytes of the next block.
    fn room(&mut self) -> (&mut [u8], &mut [u8]) {
        let buffer = &mut self.buffers[self.number % BUFFERS];
        (&mut self.sums, buffer)
    }

    /// Verifies the block that has filled [`Self::room`].
    fn check(&mut self) -> Result<()> {
        let mut checksums = [0; PAGES];
        for (sum, bytes) in checksums.iter_mut().zip(self.sums.chunks_exact(4)) {
            *sum = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let buffer = &self.buffers[self.number % BUFFERS];
        if let Err(range) = verify_fragments(0, buffer, PAGE, &checksums) {
            return fail(format!(
                "wrong data in block {}, bytes {range:?}: do not trust this machine",
                self.number
            ));
        }
        self.number += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn all_bytes_arrive_over_every_connection_by_every_transport() {
        for &transport in FloorTransport::value_variants() {
            let args = FloorArgs {
                size: 7 << 20,
                jobs: 2,
                pool: 2 << 20,
                transport,
            };
            let report = serde_json::to_value(run(&args).expect("measured")).expect("JSON");
            for (at, name) in ["send", "receive"].into_iter().enumerate() {
                let phase = &report["phases"][at];
                assert_eq!(phase["phase"], name);
                assert_eq!(phase["bytes"], 8 << 20, "whole blocks on both connections");
                assert!(phase["cpu_seconds"].as_f64() > Some(0.0));
            }
        }
    }

    #[test]
    fn every_transport_sees_the_end_of_the_stream() {
        for &transport in FloorTransport::value_variants() {
            let (to, from) = pair().expect("a connection");
            let (_, receive) = ends(transport);
            (&to).write_all(&[0; 100]).expect("sent");
            drop(to);
            assert!(receive(from, 1).is_err(), "{transport:?}: cut off");
        }
    }

    #[test]
    fn a_flipped_bit_is_seen() {
        let mut block = Block::new(3);
        let stream = |block: &Block| [&block.checksums[..], &block.data[..]].concat();
        assert!(receive(&stream(&block)[..], 1).is_ok());
        block.data[PAGE as usize] ^= 1;
        let failure = receive(&stream(&block)[..], 1).expect_err("it is damaged");
        assert!(failure.to_string().contains("16384..32768"), "{failure}");
        assert!(receive(&stream(&block)[..100], 1).is_err(), "cut off");
    }
}
