//! Incast, simulated: many storage nodes answer one reader, or many readers, through a switch whose output queues
//! share one buffer, with and without receiver-driven windows.
//!
//! The model ([`Model`]) has a fabric without a bottleneck inside, so that the output ports to the readers are what
//! queues. Time goes in steps of one packet at line rate. A sender answers in packets; a packet that finds the
//! shared buffer, or its port's share of it (the dynamic threshold of Choudhury and Hahne), full is dropped at
//! the tail and sent again after the retransmission timeout: the end of a burst has nothing behind it that
//! would tell its loss earlier. There is no ECN.
//!
//! - Without control a reader asks for everything at once, as many blocks as it wants in flight from as many nodes.
//! - With receiver-driven windows it asks for small pieces, no faster than its line carries the answers, and for no
//!   more at a time than its window over all nodes, which grows while the measured delay is below the target and
//!   is cut when it is above or something was lost (additive increase, multiplicative decrease, on delay, as Swift
//!   does; pacing by the receiver as in NDP; 3FS's request to send likewise lets the receiver decide how many
//!   transfers are under way).
//!
//! A pure function of its [`Model`]: the only dice are splitmix64's.

use std::collections::VecDeque;

use emberfs_proto::layout::splitmix64;
use serde::Serialize;

use crate::cli::IncastArgs;
use crate::show;

/// Payload of a packet, bytes.
const PACKET: u64 = 4096;
/// A node's answer to one request of a reader with a window, bytes.
const PIECE: u64 = 64 << 10;
/// A port may have at most this multiple of what is free of the shared buffer.
const SHARE: u64 = 1;
/// The window is never below so many packets; one piece is always under way.
const LEAST_WINDOW: f64 = 1.0;
/// What a delay above the target leaves of the window.
const DECREASE: f64 = 0.8;
/// Longest simulation, in steps ÷ ideal steps: a collapse ends as well.
const PATIENCE: u64 = 400;

/// What is simulated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Model {
    /// Readers, each behind a port of its own.
    pub(super) readers: u32,
    /// Nodes that each reader reads from at a time.
    pub(super) fan_in: u32,
    /// Bytes of one request.
    pub(super) block: u64,
    /// Requests of each reader.
    pub(super) blocks: u64,
    /// Of a reader's port, bytes per second.
    pub(super) line: f64,
    /// Without any queue, seconds.
    pub(super) rtt: f64,
    /// Bytes that all ports share.
    pub(super) buffer: u64,
    /// Until a lost packet is sent again, seconds.
    pub(super) timeout: f64,
    /// Delay in the queue that windows aim at, seconds.
    pub(super) target: f64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Outcome {
    /// Bytes that arrived ÷ bytes that the ports could carry until the last reader was done.
    pub(super) goodput_percent: f64,
    /// Packets dropped ÷ packets that arrived.
    pub(super) drop_percent: f64,
    /// Most bytes in the switch.
    pub(super) most_queued: u64,
    /// From the time when a packet could have passed the switch until it did, microseconds: 99 of 100 are below.
    pub(super) queue_us_p99: f64,
    /// Mean number of packets that a reader had asked for.
    pub(super) mean_window: f64,
}

/// A packet on its way. Times are steps.
#[derive(Clone, Copy, Debug)]
struct Packet {
    reader: u32,
    asked: u64,
    /// When it reaches the switch if it is not lost.
    due: u64,
    /// It was lost before: its delay says nothing about the queue now.
    again: bool,
}

#[derive(Clone, Debug)]
struct Reader {
    /// Packets that it has not asked for yet.
    left: u64,
    /// Asked for and not arrived.
    in_flight: u64,
    window: f64,
    /// Asks no earlier: no faster than its line carries the answers.
    next: u64,
    /// The window was cut for everything asked before this step.
    cut_at: u64,
    queue: VecDeque<Packet>,
}

/// Runs the model. `controlled`: with receiver-driven windows.
pub(super) fn simulate(model: &Model, controlled: bool) -> Outcome {
    let step = PACKET as f64 / model.line;
    let steps = |seconds: f64| ((seconds / step).round() as u64).max(1);
    let (rtt, timeout, target) = (steps(model.rtt), steps(model.timeout), model.target / step);
    let packets = model.block.div_ceil(PACKET) * model.blocks;
    let burst = model.block.div_ceil(PACKET) * u64::from(model.fan_in);
    let piece = if controlled { PIECE } else { model.block }.div_ceil(PACKET);
    let room = model.buffer / PACKET;
    let limit = (packets + rtt).saturating_mul(PATIENCE);
    let reader = Reader {
        left: packets,
        in_flight: 0,
        // A round trip's worth: what fills the line and no queue.
        window: if controlled { rtt as f64 } else { burst as f64 },
        next: 0,
        cut_at: 0,
        queue: VecDeque::new(),
    };
    let mut readers = vec![reader; model.readers as usize];
    // One slot per step of the future, so far as anything is scheduled ahead.
    let slots = (timeout.max(2 * rtt + piece) + 2) as usize;
    let mut arriving: Vec<Vec<Packet>> = vec![Vec::new(); slots];
    let mut delays = vec![0_u64; 1];
    let (mut queued, mut most, mut dropped, mut arrived) = (0_u64, 0_u64, 0_u64, 0_u64);
    let (mut now, mut windows, mut dice) = (0_u64, 0.0, 7_u64);
    let total = packets * u64::from(model.readers);
    while arrived < total && now < limit {
        // 1. Readers ask; the node answers at line rate, a round trip later. Nodes are not equally quick.
        for (number, reader) in readers.iter_mut().enumerate() {
            loop {
                let size = piece.min(reader.left);
                let fits = (reader.in_flight + size) as f64 <= reader.window;
                let early = controlled && now < reader.next;
                if size == 0 || early || !(fits || reader.in_flight == 0) {
                    break;
                }
                reader.next = now + size;
                reader.left -= size;
                reader.in_flight += size;
                let jitter = splitmix64(&mut dice) % (rtt / 8 + 1);
                for place in 0..size {
                    let packet = Packet {
                        reader: number as u32,
                        asked: now,
                        due: now + rtt + jitter + place,
                        again: false,
                    };
                    arriving[(packet.due % slots as u64) as usize].push(packet);
                }
            }
            windows += reader.in_flight as f64;
        }
        // 2. What arrives at the switch queues or is dropped.
        let slot = (now % slots as u64) as usize;
        for packet in std::mem::take(&mut arriving[slot]) {
            let queue = &mut readers[packet.reader as usize].queue;
            let free = room.saturating_sub(queued);
            if free == 0 || queue.len() as u64 >= free * SHARE {
                dropped += 1;
                let packet = Packet {
                    again: true,
                    ..packet
                };
                arriving[((now + timeout) % slots as u64) as usize].push(packet);
            } else {
                queue.push_back(packet);
                queued += 1;
            }
        }
        most = most.max(queued);
        // 3. Each port carries one packet to its reader.
        for reader in &mut readers {
            let Some(packet) = reader.queue.pop_front() else {
                continue;
            };
            queued -= 1;
            arrived += 1;
            reader.in_flight -= 1;
            let delay = now.saturating_sub(packet.due);
            let at = delay.min(limit) as usize;
            if delays.len() <= at {
                delays.resize(at + 1, 0);
            }
            delays[at] += 1;
            if controlled {
                let late = delay as f64 > target;
                adapt(reader, &packet, late, now, (piece, burst));
            }
        }
        now += 1;
    }
    let ideal = (packets * u64::from(model.readers)) as f64;
    let carried = (now.saturating_sub(rtt)).max(1) as f64 * f64::from(model.readers);
    Outcome {
        goodput_percent: 100.0 * arrived as f64 / carried.max(ideal),
        drop_percent: 100.0 * dropped as f64 / arrived.max(1) as f64,
        most_queued: most * PACKET,
        queue_us_p99: quantile(&delays, 0.99) as f64 * step * 1e6,
        mean_window: windows / (now.max(1) as f64 * f64::from(model.readers)),
    }
}

/// One piece more per round trip while the queue is short; a cut at most once per round trip.
fn adapt(reader: &mut Reader, packet: &Packet, late: bool, now: u64, (piece, most): (u64, u64)) {
    if !(late || packet.again) {
        reader.window = (reader.window + piece as f64 / reader.window).min(most as f64);
    } else if packet.asked >= reader.cut_at {
        reader.window = (reader.window * DECREASE).max(LEAST_WINDOW);
        reader.cut_at = now;
    }
}

fn quantile(counts: &[u64], quantile: f64) -> usize {
    let wanted = (counts.iter().sum::<u64>() as f64 * quantile).ceil() as u64;
    let mut seen = 0;
    counts
        .iter()
        .position(|count| {
            seen += count;
            seen >= wanted
        })
        .unwrap_or(0)
}

/// The shape of `emberfs bench incast --json`. Fields are added, never changed.
#[derive(Debug, Serialize)]
pub(super) struct IncastReport {
    subject: String,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    /// Nodes that answer each reader at a time.
    fan_in: u32,
    no_control: Outcome,
    windows: Outcome,
}

impl IncastReport {
    pub(super) fn render(&self) -> String {
        let mut rows = Vec::new();
        for row in &self.rows {
            for (how, outcome) in [("none", &row.no_control), ("windows", &row.windows)] {
                rows.push(vec![
                    row.fan_in.to_string(),
                    how.to_owned(),
                    format!("{:.1}", outcome.goodput_percent),
                    format!("{:.2}", outcome.drop_percent),
                    show::bytes(outcome.most_queued),
                    format!("{:.0}", outcome.queue_us_p99),
                    show::bytes((outcome.mean_window * PACKET as f64) as u64),
                ]);
            }
        }
        let header = [
            "fan-in",
            "control",
            "goodput %",
            "drops %",
            "most queued",
            "queue us p99",
            "asked per reader",
        ];
        format!("{}\n{}", self.subject, show::table(&header, rows))
    }
}

/// Each fan-in, with and without control.
pub(super) fn run(args: &IncastArgs) -> IncastReport {
    let model = |fan_in| Model {
        readers: args.readers,
        fan_in,
        block: args.block,
        blocks: args.blocks,
        line: f64::from(args.gbit) * 1e9 / 8.0,
        rtt: args.rtt_us as f64 / 1e6,
        buffer: args.buffer,
        timeout: args.timeout_us as f64 / 1e6,
        target: args.target_us as f64 / 1e6,
    };
    let rows = args.fan_in.iter().map(|&fan_in| Row {
        fan_in,
        no_control: simulate(&model(fan_in), false),
        windows: simulate(&model(fan_in), true),
    });
    IncastReport {
        subject: format!(
            "{} readers behind {} Gb/s ports of one switch with {} of shared buffer; simulated",
            args.readers,
            args.gbit,
            show::bytes(args.buffer)
        ),
        rows: rows.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        Model {
            readers: 20,
            fan_in: 16,
            block: 1 << 20,
            blocks: 40,
            line: 25e9,
            rtt: 20e-6,
            buffer: 4 << 20,
            timeout: 1e-3,
            target: 4e-6,
        }
    }

    #[test]
    fn without_control_the_buffer_overflows_and_goodput_falls() {
        let wild = simulate(&model(), false);
        assert!(wild.drop_percent > 1.0, "{wild:?}");
        assert!(wild.goodput_percent < 80.0, "{wild:?}");
        assert!(
            wild.most_queued <= model().buffer,
            "never beyond the buffer"
        );
    }

    #[test]
    fn windows_fill_the_line_without_drops() {
        let tame = simulate(&model(), true);
        assert!(tame.drop_percent < 0.1, "{tame:?}");
        assert!(tame.goodput_percent > 90.0, "{tame:?}");
        assert!(tame.queue_us_p99 < 60.0, "{tame:?}");
    }

    #[test]
    fn two_blocks_in_flight_and_a_buffer_for_them_need_no_control() {
        let alone = Model {
            fan_in: 2,
            readers: 1,
            buffer: 16 << 20,
            ..model()
        };
        let wild = simulate(&alone, false);
        assert!(wild.drop_percent < 1e-9, "{wild:?}");
        assert!(wild.goodput_percent > 90.0, "{wild:?}");
    }

    #[test]
    fn a_window_grows_on_short_delays_and_is_cut_once_per_round_trip() {
        let mut reader = Reader {
            left: 0,
            in_flight: 0,
            window: 100.0,
            next: 0,
            cut_at: 0,
            queue: VecDeque::new(),
        };
        let packet = |asked| Packet {
            reader: 0,
            asked,
            due: asked,
            again: false,
        };
        adapt(&mut reader, &packet(1), false, 10, (10, 1000));
        assert!((reader.window - 100.1).abs() < 1e-9);
        adapt(&mut reader, &packet(2), true, 11, (10, 1000));
        adapt(&mut reader, &packet(3), true, 12, (10, 1000));
        assert!((reader.window - 80.08).abs() < 1e-9, "asked before the cut");
        adapt(&mut reader, &packet(11), true, 20, (10, 1000));
        assert!(reader.window < 65.0);
    }

    #[test]
    fn the_same_model_gives_the_same_outcome() {
        assert_eq!(simulate(&model(), true), simulate(&model(), true));
    }

    #[test]
    fn a_collapse_ends() {
        let hopeless = Model {
            buffer: PACKET,
            timeout: 1.0,
            blocks: 1,
            block: 2 * PACKET,
            ..model()
        };
        assert!(simulate(&hopeless, false).goodput_percent < 50.0);
    }
}
