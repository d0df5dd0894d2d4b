//! EmberFS fuse.
