//! Turns the protocol files into Rust with pure-Rust tools: no `protoc` is needed.
//! `proto/` holds links to the repository's protocol files, so that a packaged crate has copies of its own.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["tfplugin6.proto", "go-plugin.proto", "grpc-health.proto"];
    for file in files {
        println!("cargo:rerun-if-changed=proto/{file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
