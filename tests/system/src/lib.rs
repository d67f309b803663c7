//! Shared steps of the whole-system tests.
