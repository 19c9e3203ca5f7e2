//! The generated messages under one name. Only `convert` and the shells that speak gRPC name them.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("treelease.v1");

/// The compiled `.proto` files, for reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("treelease");
