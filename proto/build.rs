//! Compiles the .proto files with a pure-Rust compiler: no protoc to install.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/meta.proto",
        "proto/cluster.proto",
        "proto/storage.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
