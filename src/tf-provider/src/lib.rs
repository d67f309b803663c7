//! Terraform plugin protocol 6 server; knows nothing of site recovery.
