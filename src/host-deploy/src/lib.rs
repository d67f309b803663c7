//! Puts the replication engine onto a host and takes it away again.
