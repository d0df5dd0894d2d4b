//! EmberFS meta.

pub mod kv;
