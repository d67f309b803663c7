//! The Terraform provider siterecovery.

fn main() {}
