//! The generated messages under one name. Only `convert` and the shells that speak gRPC name them.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("treelease.v1");
