//! Compiles the `.proto` files without `protoc`: `protox` is a compiler written in Rust.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["treelease/v1/lease.proto", "treelease/v1/local.proto", "treelease/v1/raft.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("treelease.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
