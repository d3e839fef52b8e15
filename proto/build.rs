//! Compiles the .proto files without protoc.

use prost::Message as _;

const FILES: &[&str] = &[
    "roost/v1/messaging.proto",
    "roost/admin/v1/admin.proto",
    "roost/storage/v1/cluster.proto",
    "roost/storage/v1/command.proto",
    "roost/storage/v1/rows.proto",
    "roost/peer/v1/peer.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
