//! EmberFS storage.

pub mod engine;
