//! EmberFS meta.
