//! EmberFS tests.
