//! Generated protobuf messages and gRPC services, and their conversions to domain types.
#![expect(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the .proto files carry the documentation"
)]

tonic::include_proto!("emberfs");
