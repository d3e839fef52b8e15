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

/// Whose streams are sessions.
const SESSIONS: &str = "roost/v1/messaging.proto";

/// What clients are told of by server reflection; the rest is between nodes, or on disk.
const CLIENT_FILES: &[&str] = &["roost/v1/messaging.proto", "roost/admin/v1/admin.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let clients = protox::compile(CLIENT_FILES, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("client_descriptors.bin"), clients.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(protox::compile(FILES, ["proto"])?)?;
    // Once more, in place of what was just made: only sessions are so many that their buffers count.
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::codec::SmallBuffers")
        .compile_fds(protox::compile([SESSIONS], ["proto"])?)?;
    Ok(())
}
