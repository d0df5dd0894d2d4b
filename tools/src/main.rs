//! The `emberfs` binary.
fn main() {}
