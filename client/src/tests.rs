//! The client against a small fake cluster over real sockets.

mod fetch;
mod files;
mod hedged;
mod many;
mod namespace;
mod reads;
mod writes;
