//! Generates the messages and services of `proto/engine.proto` without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "../../proto/engine.proto";
    println!("cargo:rerun-if-changed={proto}");
    let descriptors = protox::compile([proto], ["../../proto"])?;
    tonic_prost_build::configure()
        // Their `Debug` is written by hand in `secret.rs`: secrets reach no log through a message that holds them.
        .skip_debug([
            "siterecovery.engine.v1.AzureCredential",
            "siterecovery.engine.v1.EncryptionKey",
            "siterecovery.engine.v1.EnrolRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
