//! A mount that outlives the process that serves it.
//!
//! A small process, the *keeper*, holds the kernel's device and starts a *worker* that serves it. A worker that dies is
//! replaced; one that is to be replaced, by a newer program for example, stops taking requests, finishes what it has, and
//! goes when its successor is known to reach the cluster. Programs with open files notice a pause.
//!
//! - The kernel keeps a mount as long as somebody has its device open, and sends the requests that a dead worker
//!   did not answer once more when it is asked to (FUSE_NOTIFY_RESEND, Linux 6.9). They are marked.
//! - A successor is the same client of the cluster: sessions, locks and answers to requests go on. The storage servers
//!   refuse its predecessor from then on, whose last writes may still be on their way.
//! - What only the worker knows is in files without names that the keeper holds as well ([`Ledger`]): open files and
//!   directories, the numbers of changes that were asked for and not answered, so that they are made once, and
//!   the bytes of writes that were answered and are not stored, and where appends went that were not answered ([`arena`]).
//!
//! What the kernel believes of names and attributes goes on to hold for its term; names are asked for again where the
//! kernel can be told so (Linux 6.16).

mod arena;
mod control;
mod keeper;
mod ledger;
pub(crate) mod nudge;
mod table;
mod worker;

pub(crate) use arena::Kept;
pub use keeper::{Keeper, Replace};
pub(crate) use ledger::{DirRecord, Found, Ledger, OpenRecord};
pub(crate) use table::Place;
pub use worker::work;
