//! EmberFS client.
