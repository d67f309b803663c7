//! Replicas at rest: base, journal and recovery points of a protected VM over a store.
