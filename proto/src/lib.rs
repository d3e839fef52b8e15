//! Roost's wire and storage formats, generated from the `.proto` files of this package.
//!
//! The comments in those files are the documentation; rustdoc shows them.

pub mod codec;

pub use roost::admin::v1 as admin;
pub use roost::peer::v1 as peer;
pub use roost::storage::v1 as storage;
pub use roost::v1;

/// The .proto files that clients and administrators use, as an encoded `FileDescriptorSet` for gRPC server reflection.
/// What nodes say to each other is not among them.
pub const CLIENT_DESCRIPTORS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/client_descriptors.bin"));

// Nested as the packages are: generated code names its neighbours by relative path.
mod roost {
    pub mod v1 {
        tonic::include_proto!("roost.v1");
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("roost.admin.v1");
        }
    }
    pub mod storage {
        pub mod v1 {
            tonic::include_proto!("roost.storage.v1");
        }
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("roost.peer.v1");
        }
    }
}
